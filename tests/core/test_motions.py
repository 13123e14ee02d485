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


TURNED = """
<mujoco>
  <worldbody>
    <body name="trunk" pos="0 0 0.5">
      <freejoint/>
      <geom type="box" size=".1 .1 .1" mass="1"/>
      <body name="thigh" euler="0 0 90">
        <joint name="hip" axis="1 0 0" range="-90 90"/>
        <geom type="capsule" fromto="0 0 0 0 0 -.2" size=".03" mass=".5"/>
        <body name="shank" pos="0 0 -.2">
          <joint name="turn" axis="0 1 0" range="-90 90"/>
          <geom type="capsule" fromto="0 0 0 0 0 -.2" size=".03" mass=".5"/>
        </body>
      </body>
    </body>
  </worldbody>
  <actuator><motor name="a" joint="hip"/><motor name="b" joint="turn"/></actuator>
</mujoco>
"""


def test_the_joints_that_swing_are_those_across_the_picture(tmp_path):
    """A body that is turned has its axes elsewhere: here `hip` is the one across, whose axis is its body's x."""
    (tmp_path / "turned.xml").write_text(TURNED)
    body = Body(envs.make(tmp_path / "turned.xml"))
    size = random_motions(body, 200, np.random.default_rng(0)).amplitude[:, 0, JOINTS:].std(axis=0)
    assert body.env.joint_names == ("hip", "turn") and size[0] > 3 * size[1]


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
