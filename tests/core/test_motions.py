"""Random motions: symmetric gaits, within limits, and near ones that are near."""

import numpy as np
import pytest

from nil_jax import envs
from nil_jax.envs import Body
from nil_jax.envs.body import JOINTS
from nil_jax.motions import near, random_motions

ROUNDING = 1e-9  # float64 sums of a few sines
TIMES = np.arange(-7, 1) / 25


@pytest.fixture(scope="module")
def body():
    return Body(envs.make("unitree_a1"))


def test_the_second_half_of_a_gaits_cycle_mirrors_the_first(body):
    motions = random_motions(body, 40, np.random.default_rng(0))
    gaits = np.flatnonzero(motions.gait)
    assert 10 < len(gaits) < 40
    for index in gaits:
        half = 0.5 / motions.frequency[index, 0]
        here, there = (motions.at(TIMES + shift)[index] for shift in (0.0, half))
        np.testing.assert_allclose(there, body.mirrored(here), atol=ROUNDING)


def test_motions_move_and_differ_and_joints_stay_within_limits(body):
    coords = random_motions(body, 60, np.random.default_rng(1)).at(TIMES)
    spread = coords[..., JOINTS:].std(1).mean(1)
    assert 0.05 < (spread < ROUNDING).mean() < 0.35  # poses that are held
    assert np.median(spread) > 0.02  # rad
    qpos = body.qpos(coords)
    low, high = body.env.joint_range.T
    assert (qpos[..., 7:] >= low - 1e-6).all() and (qpos[..., 7:] <= high + 1e-6).all()
    np.testing.assert_allclose(np.linalg.norm(qpos[..., 3:7], axis=-1), 1.0, atol=1e-6)


def test_the_same_seed_draws_the_same_motions(body):
    drawn = [near(random_motions(body, 5, rng), rng).at(TIMES) for rng in map(np.random.default_rng, (2, 2, 3))]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


def test_near_motions_are_nearer_than_others(body):
    rng = np.random.default_rng(4)
    motions = random_motions(body, 40, rng)
    points, close = (body.keypoints(body.qpos(m.at(TIMES))) for m in (motions, near(motions, rng)))
    away, apart = body.distance(close, points), body.distance(np.roll(points, 1, 0), points)
    assert np.median(away) < 0.5 * np.median(apart)
    assert (away > 1e-4).mean() > 0.8 and away.max() > 0.05  # robot sizes: from hardly changed to much
