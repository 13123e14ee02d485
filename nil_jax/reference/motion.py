"""The motion that a clip shows: poses fitted to its masks, one after the other, and what follows from feet that hold.

Each fit begins where the last two poses lead, and a pose costs by how far it is from there: so legs keep their sides
while one hides the other. As in `align`, a side view tells the joints that turn about the axis across the picture; the
others keep their angles.

Axes: T ticks, N candidates, P parameters of the fit (`align`), F geoms of feet.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Bool, Float, Shaped
from PIL import Image
from scipy.ndimage import median_filter

from nil_jax.envs import Body
from nil_jax.reference.align import DISTANCE, DOWN, JOINTS, PITCH, SCALE, Problem, search
from nil_jax.rendering import Camera

ITERATIONS = 10
SPREAD_CAMERA = (0.02, 0.03, 0.02, 1e-4, 0.12)  # as in `align`, from tick to tick; the camera's distance is held
SPREAD_JOINTS = 0.5  # rad
USUAL = 25.0  # ticks per second, up to which the spreads hold
NEARNESS = 0.03  # score lost where a pose is half a spread away from where the motion leads
HOME = 0.003  # the same for the first pose: what is hidden goes back there
DRAG = 0.8  # part of the last change that is expected again
PACE = 1.0  # s, over which the median of the steps of the base is taken
GAIT, DRIFT = (0.2, 2), (0.6, 1)  # windows (s) and orders of the Savitzky-Golay filters of poses and of the camera


class Following(Problem):
    """The fit to one mask of a clip, near the pose that the masks before lead to."""

    def __init__(
        self,
        env: Any,
        mask: Bool[np.ndarray, "H W"],
        camera: Camera,
        start_qpos: Float[np.ndarray, " nq"],
        fps: float,
    ):
        super().__init__(env, mask, camera, start_qpos)
        self.spread[:JOINTS], self.spread[JOINTS:] = SPREAD_CAMERA, SPREAD_JOINTS
        self.spread *= min(1.0, USUAL / fps)  # wider ones, at lower rates, lose the pose
        self.first = np.zeros(len(self.spread), np.float32)
        self.first[PITCH] = 2 * np.arcsin(np.clip(start_qpos[5], -1, 1))
        self.first[JOINTS:] = start_qpos[7 + self.joints]
        self.expected = self.first

    def cost(self, theta: Float[np.ndarray, "N P"]) -> Float[np.ndarray, " N"]:
        """Of poses that are far from the expected one, and a little of those far from the first."""
        away = (theta - self.expected) / (self.spread / 2)
        changed = (theta - self.first)[:, JOINTS:] / (SPREAD_JOINTS / 2)
        home = np.square(changed).mean(-1) if changed.shape[1] else 0.0
        return NEARNESS * np.square(away).mean(-1) + HOME * home

    def poses(self, theta: Float[np.ndarray, "T P"]) -> Float[np.ndarray, "T nq"]:
        """Coordinates at x = 0, not yet on the floor."""
        qpos = np.tile(self.start, (len(theta), 1))
        qpos[:, 3], qpos[:, 5] = np.cos(theta[:, PITCH] / 2), np.sin(theta[:, PITCH] / 2)
        qpos[:, 7 + self.joints] = theta[:, JOINTS:]
        return qpos


@dataclass(frozen=True)
class Motion:
    """What a clip shows, and how its camera drifts, which video models do."""

    qpos: Float[np.ndarray, "T nq"]  # feet on the floor; the base moves as the lowest foot holds
    # Since tick 0: log size of the robot, its way right and down (image heights).
    drift: Float[np.ndarray, "T 3"]


def fit_motion(
    env: Any,
    masks: Bool[np.ndarray, "T H W"],
    camera: Camera,
    start_qpos: Float[np.ndarray, " nq"],
    *,
    fps: float,
    loop: bool = False,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Motion:
    """Poses along a clip.

    Args:
        env: From `nil_jax.envs.make`.
        masks: The robot at every tick.
        camera: Fitted to the first mask.
        start_qpos: Fitted to the first mask.
        fps: Ticks per second.
        loop: The first pose follows the last.
        seed: Of the candidates.
        progress: Called with the finished part, in [0, 1].
    """
    problem, rng = Following(env, masks[0], camera, start_qpos, fps), np.random.default_rng(seed)
    path = [problem.first, problem.first]
    for tick, mask in enumerate(masks[1:], 1):
        problem.mask, problem.expected = mask, path[-1] + DRAG * (path[-1] - path[-2])
        problem.expected[:DISTANCE] = path[-1][:DISTANCE]
        # What cannot be seen goes on as it did.
        path.append(search(problem, rng, problem.expected, ITERATIONS)[0] if mask.any() else problem.expected)
        if progress is not None:
            progress(tick / (len(masks) - 1))
    # A loop's poses go on at its end; its camera, which has drifted, jumps there.
    path = np.array(path[1:])
    drift, theta = _smooth(path, fps, *DRIFT), _smooth(path, fps, *GAIT, loop)
    drift -= drift[0]
    body, qpos = Body(env), problem.poses(theta)
    qpos[:, 2] -= body.kinematics(qpos)[2]
    qpos[1:, 0] = np.cumsum(evened(travelled(body, qpos, loop=loop), fps, loop=loop)[:-1])
    return Motion(qpos, drift[:, SCALE : DOWN + 1])


def _odd(ticks: float) -> int:
    """The nearest odd number; filters want one."""
    return 2 * round((ticks - 1) / 2) + 1


def _smooth(
    theta: Float[np.ndarray, "T P"], fps: float, seconds: float, order: int, loop: bool = False
) -> Float[np.ndarray, "T P"]:
    from scipy.signal import savgol_filter  # here, because every `import nil_jax` would wait for it

    window = min(_odd(fps * seconds), len(theta) - 1 + len(theta) % 2)  # odd
    if window <= order:
        return theta
    return savgol_filter(theta, window, order, axis=0, mode="wrap" if loop else "interp").astype(np.float32)


def steadied(
    pictures: Shaped[np.ndarray, "T S S *c"], drift: Float[np.ndarray, "T 3"], center: Float[np.ndarray, " 2"]
) -> Shaped[np.ndarray, "T S S *c"]:
    """Square pictures as a camera that does not drift would have seen them; white, or no robot, around.

    Args:
        pictures: uint8 [T, S, S, 3], or masks [T, S, S].
        drift: Of `Motion`.
        center: Of the camera, in image widths and heights.
    """
    return np.stack([_steady(picture, row, center) for picture, row in zip(pictures, drift, strict=True)])


def _steady(picture: np.ndarray, drift: Float[np.ndarray, "3"], center: Float[np.ndarray, " 2"]) -> np.ndarray:
    scale, size = float(np.exp(drift[0])), (len(picture), len(picture))
    x, y = len(picture) * ((1 - scale) * center + drift[1:])
    what = Image.Transform.AFFINE, (scale, 0.0, x, 0.0, scale, y)  # from a place in the result to one in the picture
    if picture.dtype == bool:
        return np.asarray(Image.fromarray(picture.astype(np.uint8)).transform(size, *what)) > 0
    linear = Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(picture).transform(size, *what, linear, fillcolor=(255, 255, 255)))


def travelled(body: Body, qpos: Float[np.ndarray, "T nq"], *, loop: bool = False) -> Float[np.ndarray, " T"]:
    """How far the base moves from each tick to the next if the lowest foot stays where it is, m along x.

    The last entry leads back to the first pose if the motion loops; otherwise it is the one before.

    Args:
        body: The robot.
        qpos: Poses; their x does not matter.
        loop: The first pose follows the last.
    """
    geom_xpos, geom_xmat, _, _ = body.kinematics(qpos)
    feet = geom_xpos[:, body.env.foot_geom_ids, 0] - qpos[:, :1]
    height = body.env.foot_heights(geom_xpos, geom_xmat)
    following, holding = np.roll(feet, -1, axis=0), (height + np.roll(height, -1, axis=0)).argmin(1)
    steps = (feet - following)[np.arange(len(qpos)), holding]
    if not loop and len(steps) > 1:
        steps[-1] = steps[-2]
    return steps


def evened(steps: Float[np.ndarray, " T"], fps: float, *, loop: bool = False) -> Float[np.ndarray, " T"]:
    """A running median of the steps of `travelled` on fitted poses, of which there are `fps` a second.

    Where both feet are low, a small error of the fit decides which one seems to hold: single steps are far off.
    """
    return median_filter(steps, _odd(fps * PACE), mode="wrap" if loop else "reflect")


def velocities(
    model: mujoco.MjModel, qpos: Float[np.ndarray, "T nq"], dt: float, *, loop: bool = False
) -> Float[np.ndarray, "T nv"]:
    """Velocities of a motion in MuJoCo's coordinates: central differences, one-sided at the ends of one without a loop.

    Args:
        model: The robot.
        qpos: Poses.
        dt: Seconds between them.
        loop: The first pose follows the last, with a step along x like the others.
    """
    before, after = (np.roll(np.asarray(qpos, np.float64), shift, axis=0) for shift in (1, -1))
    span = np.full(len(qpos), 2 * dt)
    if loop:
        stride = (qpos[-1, 0] - qpos[0, 0]) * len(qpos) / (len(qpos) - 1)
        before[0, 0] -= stride
        after[-1, 0] += stride
    else:
        before[0], after[-1], span[[0, -1]] = qpos[0], qpos[-1], dt
    found = np.zeros((len(qpos), model.nv))
    for row, earlier, later, seconds in zip(found, before, after, span, strict=True):
        mujoco.mj_differentiatePos(model, row, seconds, earlier, later)
    return found.astype(np.float32)
