"""What the fidelity table rests on: statistics, and real gaits on the robots."""

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

import nil_jax
from nil_jax.envs.body import JOINTS

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
ROUNDING = 1e-12  # float64 sums of a few dozen values


@pytest.fixture
def load(monkeypatch):
    """Imports a module of the benchmarks' folder, as the scripts there do, and forgets it afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield lambda name: __import__(name)
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and Path(sys.modules[name].__file__).parent == BENCHMARKS:
            del sys.modules[name]


@pytest.fixture(scope="module")
def h1():
    return nil_jax.envs.make("unitree_h1")


def test_spearman_equals_scipys_with_and_without_ties(load):
    rng = np.random.default_rng(0)
    reward, distance = rng.normal(size=(4, 30)), rng.integers(0, 8, (4, 30)).astype(float)
    expected = [spearmanr(a, -b).statistic for a, b in zip(reward, distance, strict=True)]
    np.testing.assert_allclose(load("ranking").spearman(reward, distance), expected, atol=ROUNDING)


def test_spearman_of_a_constant_reward_is_zero(load):
    assert load("ranking").spearman(np.ones(5), np.arange(5.0)) == 0.0


def test_auc_equals_a_loop_over_pairs(load):
    rng = np.random.default_rng(1)
    right, wrong = rng.integers(2, 9, 20).astype(float), rng.integers(0, 7, 15).astype(float)
    expected = np.mean([(r > w) + 0.5 * (r == w) for r in right for w in wrong])
    assert load("ranking").auc(right, wrong) == pytest.approx(expected, abs=ROUNDING)


def test_a_basin_ends_where_the_slope_dies_or_turns(load):
    places, basin = np.linspace(0, 1, 11), load("ranking").basin
    assert basin(places, np.maximum(0.4 - places, 0)) == pytest.approx(0.4)
    assert basin(places, abs(places - 0.6)) == pytest.approx(0.6)
    assert basin(places, -places) == 1.0


def test_the_bootstraps_interval_holds_the_middle(load):
    low, high = load("ranking").interval(np.arange(1001) / 1000)
    assert (low, high) == pytest.approx((0.025, 0.975))


def test_a_recorded_walk_keeps_its_joints_and_closes_into_a_symmetric_cycle(load, h1, shared):
    motions = load("motions")
    gait = motions.read_gait(motions.RECORDINGS["h1 walk"], shared / "mocap", h1)
    data = np.load(shared / "mocap" / "h1_walk.npz")
    knee = JOINTS + h1.joint_names.index("left_knee")
    assert gait.cycle[0, knee] == pytest.approx(data["q_knee_angle_l"][0])
    assert 0.9 < gait.period < 1.2  # s; the README of the recordings: about 1.04
    half = len(gait.cycle) // 2
    np.testing.assert_allclose(gait.body.mirrored(gait.cycle[:half]), gait.cycle[half:], atol=ROUNDING)
    np.testing.assert_allclose(gait.at(np.array([gait.period])), gait.cycle[:1], atol=1e-9)
    step = abs(np.diff(gait.cycle, axis=0, append=gait.cycle[:1])).max()
    assert step < 0.03  # rad in 2 ms: 15 rad/s, twice the fastest recorded joint; a seam would jump


def test_graded_families_grow_with_their_strength_and_the_right_ones_are_right(load, h1, shared):
    motions, families = load("motions"), load("families")
    gait = motions.read_gait(motions.RECORDINGS["h1 walk"], shared / "mocap", h1)
    stand = gait.body.coords(h1.default_qpos[None])[0]
    made = families.graded(gait, stand, 12, 4, np.random.default_rng(0))
    ranking = load("ranking")
    for name, neutral in (("joint noise", 0.0), ("amplitude", 1.0), ("standing blend", 0.0), ("hip error", 0.0)):
        clips = made[name]
        reference = gait.body.qpos(gait.at(clips.phase[:, None] + families.ticks(4)))
        away = gait.body.distance(gait.body.keypoints(clips.qpos), gait.body.keypoints(reference))
        assert ranking.spearman(-abs(clips.strength - neutral), away) > 0.6, name


def test_centring_embeddings_brings_out_what_a_common_offset_hides(load):
    rng = np.random.default_rng(4)
    offset = 100 * np.ones(16)
    bank, reference = offset + rng.normal(size=(1, 64, 16)), offset + rng.normal(size=(1, 8, 16))
    near, far = reference + 0.1 * rng.normal(size=reference.shape), offset + rng.normal(size=reference.shape)
    agent, reference = (x.astype(np.float32) for x in (np.stack([near, far]), reference))
    found = [load("features").embedding_rewards("e", (1,), part, reference, bank.astype(np.float32)) for part in agent]
    gaps = {name: (found[0][name] - found[1][name]).mean() for name in found[0]}
    assert gaps["e, every 1: cosine (published)"] < 1e-3
    assert gaps["e, every 1: cosine, centred"] > 0.3
    assert gaps["e, every 1: cosine, whitened"] > 0.3


def test_a_window_of_the_reference_ends_at_the_clips_tick(load):
    studies = load("studies")
    video_length, margin = 8, studies.MARGIN
    frames = studies.windows(np.array([0.0, 0.12]), video_length, studies.LENGTH, margin)
    tick_zero = video_length - 1 + margin  # frame that shows the gait at time 0
    np.testing.assert_array_equal(frames[:, -1 - margin], [tick_zero, tick_zero + 3])
    assert frames.min() == 0
