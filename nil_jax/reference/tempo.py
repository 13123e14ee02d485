"""Is a clip in slow motion? The rhythm of its steps beside that of a walker with legs as long as the robot's.

Axes: T frames, H rows, W columns, K lags.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

GRAVITY = 9.81  # m/s^2
WALKING = 0.57  # steps per second times sqrt(leg / g): people and the walks of H1 and Talos take 0.5 to 0.6
SHORTEST_LEG = 0.05  # m
USUAL = (0.6, 1.7)  # times the usual rhythm: from a slow walk to a run
RHYTHMIC = 0.35  # autocorrelation from which on there is a rhythm
FIRST_PEAK = 0.8  # of the highest: the first lag that correlates so well is the step, not two of them


def tempo(env: Any, masks: Bool[np.ndarray, "T H W"], fps: float) -> dict[str, float | None]:
    """Compares the rhythm of a clip with the robot's pendulum.

    A walker of leg length l takes about `0.57 sqrt(g / l)` steps a second (a Froude-like scaling: legs swing as
    pendulums do); l is the height of the robot's base in its start pose. The silhouette repeats with every step, as it
    does not show which leg is in front.

    Args:
        env: From `nil_jax.envs.make`.
        masks: Robot in each frame.
        fps: Frames per second, of the clip as it will be played.

    Returns:
        JSON values: `steps_per_second` (None without a rhythm), `usual_steps_per_second`, and `suggested_speed`, which
        would make them equal (None where there is no rhythm, or one between that of a slow walk and a run). The last
        two are None where the robot's base is a frame on the floor, which tells nothing of its legs.
    """
    leg, steps = float(env.start_qpos[2]), step_frequency(masks, fps)
    usual, suggested = (WALKING * math.sqrt(GRAVITY / leg) if leg > SHORTEST_LEG else None), None
    if steps is not None and usual is not None and not USUAL[0] <= steps / usual <= USUAL[1]:
        suggested = round(usual / steps, 2)
    return {
        "steps_per_second": None if steps is None else round(steps, 3),
        "usual_steps_per_second": None if usual is None else round(usual, 3),
        "suggested_speed": suggested,
    }


def step_frequency(masks: Bool[np.ndarray, "T H W"], fps: float) -> float | None:
    """Steps per second, from the autocorrelation of how far the legs are apart; None without a rhythm."""
    correlation = _autocorrelation(_spread(masks[np.any(masks, (1, 2))]))
    # Lags up to the first that is not positive belong to the peak at zero.
    start = int(np.argmax(correlation <= 0))
    if start == 0 or start >= len(correlation) - 1:
        return None
    inner = correlation[1:-1]
    peaks = 1 + np.flatnonzero((inner >= correlation[:-2]) & (inner > correlation[2:]))
    peaks = peaks[peaks > start]
    if not len(peaks) or correlation[peaks].max() < RHYTHMIC:
        return None
    lag = peaks[correlation[peaks] >= FIRST_PEAK * correlation[peaks].max()][0]
    before, here, after = correlation[lag - 1 : lag + 2]
    return float(fps / (lag + 0.5 * (before - after) / (before - 2 * here + after)))  # the parabola's top


def _spread(masks: Bool[np.ndarray, "T H W"]) -> Float[np.ndarray, " T"]:
    """Standard deviation of the columns over the lower half of the robot, in its heights."""
    columns, spread = np.arange(masks.shape[2]), []
    for mask in masks:
        rows = np.flatnonzero(mask.any(1))
        weights = mask[(rows[0] + rows[-1] + 1) // 2 :].sum(0)
        mean = weights @ columns / weights.sum()
        spread.append(np.sqrt(weights @ np.square(columns - mean) / weights.sum()) / (rows[-1] + 1 - rows[0]))
    return np.array(spread)


def _autocorrelation(values: Float[np.ndarray, " T"]) -> Float[np.ndarray, " K"]:
    """Of the values less their trend, for lags up to two thirds of the clip; each lag over its own overlap."""
    time = np.arange(len(values))
    values = values - np.polyval(np.polyfit(time, values, 1), time)
    lags = range(2 * len(values) // 3)
    pairs = [(values[: len(values) - lag], values[lag:]) for lag in lags]
    return np.array([a @ b / max(np.sqrt((a @ a) * (b @ b)), 1e-12) for a, b in pairs])


def tempo_hint(tempo: Mapping[str, float | None], speed: float) -> str | None:
    """One line for people where the rhythm is unusual.

    Args:
        tempo: From `tempo`.
        speed: The clip's, as it was prepared.
    """
    if not tempo["suggested_speed"]:
        return None
    return (
        f"{tempo['steps_per_second']:.1f} steps per second, where a walker of this size takes about "
        f"{tempo['usual_steps_per_second']:.1f}; if the clip is not meant so, type: "
        f"--speed {speed * tempo['suggested_speed']:.2g}"
    )


def hints(made: Mapping[str, Any]) -> list[str]:
    """What people may want to do with a clip, a line each.

    Args:
        made: Provenance of a reference.
    """
    if "tempo" not in made:
        return []
    rhythm = tempo_hint(made["tempo"], made["speed"])
    found = [f"the clip shows {rhythm}"] if rhythm else []
    if made["tempo"]["steps_per_second"] and not made["loop"] and not made.get("cycle"):
        found.append("the clip repeats; one stride of it as a loop is less to learn, and never ends: --cycle")
    return found
