"""The rhythm of a clip: known ones are found, and slow motion is told."""

from types import SimpleNamespace

import numpy as np
import pytest

from nil_jax.reference.tempo import hints, step_frequency, tempo, tempo_hint

ROWS, COLUMNS = np.mgrid[0:120, 0:120]
ROBOT = SimpleNamespace(start_qpos=np.array([0.0, 0.0, 0.9]))  # a base as high as a person's hips


def walk(steps_per_second, fps, seconds=5.0, noise=0.0):
    """Two legs that swing against each other: what is seen repeats with every step, half a swing."""
    rng, masks = np.random.default_rng(0), []
    for time in np.arange(0, seconds, 1 / fps):
        angle = 0.5 * np.sin(np.pi * steps_per_second * time) + noise * rng.standard_normal()
        legs = [(np.abs(COLUMNS - 60 - s * angle * (ROWS - 55)) < 4) & (ROWS >= 55) & (ROWS < 110) for s in (-1, 1)]
        masks.append(legs[0] | legs[1] | ((np.abs(COLUMNS - 60) < 9) & (ROWS >= 15) & (ROWS < 60)))
    return np.stack(masks)


@pytest.mark.parametrize(("steps", "fps"), [(1.9, 30.0), (0.7, 24.0), (3.2, 30.0), (1.3, 8.0)])
def test_the_rhythm_of_steps_is_found(steps, fps):
    assert step_frequency(walk(steps, fps), fps) == pytest.approx(steps, rel=0.03)  # a fraction of a frame in a step
    assert step_frequency(walk(steps, fps, noise=0.03), fps) == pytest.approx(steps, rel=0.08)


def test_where_nothing_repeats_there_is_no_rhythm():
    still = walk(0.0, 30.0)
    once = walk(0.08, 30.0)  # less than half a step in the clip
    for masks in (still, once, still[:2], np.random.default_rng(0).random((60, 32, 32)) < 0.3):
        assert step_frequency(masks, 30.0) is None
    found = tempo(ROBOT, still, 30.0)
    assert found["steps_per_second"] is None and tempo_hint(found, 1.0) is None


def test_a_walk_in_slow_motion_is_told_and_how_much_faster_it_should_be_played():
    usual = tempo(ROBOT, walk(1.9, 30.0), 30.0)
    assert usual["suggested_speed"] is None and tempo_hint(usual, 1.0) is None
    slow = tempo(ROBOT, walk(1.9, 30.0), 30.0 / 3)  # the same frames, at a third of their rate
    assert slow["usual_steps_per_second"] == pytest.approx(0.57 * np.sqrt(9.81 / 0.9), abs=1e-3)
    assert slow["suggested_speed"] == pytest.approx(slow["usual_steps_per_second"] * 3 / 1.9, rel=0.03)
    assert "0.6 steps per second" in tempo_hint(slow, 1.0) and "type: --speed 3" in tempo_hint(slow, 1.0)
    # The clip was already played at twice its speed: the flag replaces that.
    assert f"--speed {2 * slow['suggested_speed']:.2g}" in tempo_hint(slow, 2.0)


def test_a_loop_is_suggested_where_a_clip_repeats_and_is_none_yet():
    made = {"tempo": tempo(ROBOT, walk(1.9, 30.0), 30.0), "speed": 1.0, "loop": False, "cycle": False}
    (hint,) = hints(made)
    assert hint.endswith("--cycle")
    assert hints(made | {"loop": True}) == hints(made | {"cycle": True}) == hints({}) == []
    slow, _ = hints(made | {"tempo": tempo(ROBOT, walk(1.9, 30.0), 10.0)})
    assert slow.startswith("the clip shows 0.6 steps per second")
    assert hints(made | {"tempo": tempo(ROBOT, walk(0.0, 30.0), 30.0)}) == []


@pytest.mark.parametrize("height", [0.0, -0.1])
def test_a_base_on_the_floor_tells_nothing_of_the_legs(height):
    found = tempo(SimpleNamespace(start_qpos=np.array([0.0, 0.0, height])), walk(1.9, 30.0), 10.0)
    assert found["usual_steps_per_second"] is None and tempo_hint(found, 1.0) is None
    assert found["steps_per_second"] == pytest.approx(1.9 / 3, rel=0.03)


def test_smaller_robots_step_faster():
    small = SimpleNamespace(start_qpos=np.array([0.0, 0.0, 0.225]))
    masks = walk(1.0, 30.0)
    ratio = tempo(small, masks, 30.0)["usual_steps_per_second"] / tempo(ROBOT, masks, 30.0)["usual_steps_per_second"]
    assert ratio == pytest.approx(2.0, rel=1e-3)
