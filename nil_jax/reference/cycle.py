"""The part of a clip that repeats, cut out as a loop: a robot that learns it goes on for as long as one likes.

Axes: T ticks of the clip, P of the loop, K keypoints, D coordinates of a pose (`envs.body`).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from nil_jax.envs import Body

AROUND = 2  # ticks before and after the seam in which the motion must agree, so that velocities do too
SLACK = 0.15  # of a stride, by which a loop may be longer or shorter
SHORTEST = 0.4  # s, where the clip has no rhythm
STILL = 0.5  # of the motion's usual pace, below which a part is a rest and no stride


class Cycle(NamedTuple):
    """A loop within a motion."""

    first: int  # tick
    ticks: int  # P
    seam: float  # how far apart the motion is where the loop closes, over how far it moves in a tick; below 1 is good
    qpos: Float[np.ndarray, "P nq"]  # closed; from x = 0 on


def find_cycle(body: Body, qpos: Float[np.ndarray, "T nq"], fps: float, steps_per_second: float | None) -> Cycle:
    """The stride of a motion that closes best; where there is no rhythm, the part of any length that does.

    Its poses are shifted, linearly along the loop, by what is missing at the seam; it advances as fast as the motion
    does on average, of which a single stride tells little. Masks alone could not say what a stride is: they look alike
    after each step.

    Args:
        body: The robot.
        qpos: The motion.
        fps: Ticks per second.
        steps_per_second: The rhythm; None: there is none.

    Raises:
        ValueError: a motion too short to hold a whole stride, or with a rest in all of them.
    """
    first, count, seam = _best(body.keypoints(qpos), *_lengths(len(qpos), fps, steps_per_second))
    closed = _closed(body, qpos[first : first + count + 1])
    closed[:, 0] = (qpos[-1, 0] - qpos[0, 0]) / (len(qpos) - 1) * np.arange(count)
    return Cycle(first, count, seam, closed)


def _lengths(ticks: int, fps: float, steps: float | None) -> tuple[int, int]:
    """The shortest and the longest loop to look at."""
    most = ticks - 2 * AROUND - 1
    if steps is None:
        low, high = SHORTEST * fps, most
    else:
        low, high = (2 * fps / steps * (1 + way * SLACK) for way in (-1, 1))
    low, high = max(2, int(np.ceil(low))), min(most, int(high))
    if high < low:
        raise ValueError(
            f"cycle: expected a clip of at least {(low + 2 * AROUND + 1) / fps:.2f} s, which a stride and the ticks "
            f"around its ends take, got {ticks / fps:.2f} s; take a longer clip, or leave out --cycle"
        )
    return low, high


def _best(points: Float[np.ndarray, "T K 3"], low: int, high: int) -> tuple[int, int, float]:
    """(first tick, P, seam) of the loop whose ends are most alike."""

    def apart(count: int) -> Float[np.ndarray, " n"]:
        return np.sqrt(np.square(points[count:] - points[:-count]).sum(-1).mean(-1))

    path = np.concatenate([[0.0], np.cumsum(apart(1))])
    usual = max(float(np.median(apart(1))), 1e-9)
    window, found = np.ones(2 * AROUND + 1) / (2 * AROUND + 1), []
    for count in range(low, high + 1):
        seams = np.convolve(apart(count), window, "valid") / usual
        # Nothing is more alike than two looks at a robot that rests.
        moved = (path[count:] - path[:-count])[AROUND : AROUND + len(seams)]
        seams = np.where(moved < STILL * count * usual, np.inf, seams)
        found.append((float(seams.min()), AROUND + int(seams.argmin()), count))
    seam, first, count = min(found)
    if not np.isfinite(seam):
        raise ValueError("cycle: expected a part of the clip that moves and repeats, got none; leave out --cycle")
    return first, count, seam


def _closed(body: Body, qpos: Float[np.ndarray, "Q nq"]) -> Float[np.ndarray, "P nq"]:
    """The P = Q - 1 poses of a loop, of which the last one given should be the first again."""
    coords, count = body.coords(qpos), len(qpos) - 1
    missing = coords[0] - coords[-1]
    return body.qpos(coords[:-1] + np.arange(count)[:, None] / count * missing)
