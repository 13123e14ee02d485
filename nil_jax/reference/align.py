"""Fitting camera and start pose to the first frame, so that the simulated robot stands where the video's robot stands.

The cross-entropy method: hundreds of candidates (camera scale, offset and distance, base pitch, joints that turn about
the axis across the picture) are rendered at once and compared with the frame's mask; the best few set where to sample
next. Many short searches say which few are worth a long one. A side view says little about the other joints, which
keep their angles. Which leg is left and which is right shows only in the perspective: both are tried, which is right in
nearly all known poses (benchmarks/align.py); following the fit and its swap over the next frames was no better. The
robot is taken to face right; `faces_left` tells beforehand whether it does not.

Axes: N candidates, P parameters, L levels of coarseness, H rows, W columns.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from nil_jax import envs
from nil_jax.envs.body import mirror_joints
from nil_jax.rendering import Camera, make_scene, render_masks, side_camera

# Parameters: log, image heights twice, log, rad, rad from here on.
SCALE, RIGHT, DOWN, DISTANCE, PITCH, JOINTS = range(6)
SPREAD_CAMERA = (0.08, 0.03, 0.03, 0.3, 0.1)  # standard deviations at the start, of the parameters before the joints
SPREAD_JOINTS = 0.35  # rad
ROBOT_SIZES = 3.0  # distance of the camera before it is fitted
LEVELS = (1, 2, 4, 8)  # pixels a side of the blocks over which masks are averaged before they are compared
CANDIDATES, ELITES, DRAWS = 256, 32, 1024
HEAT, FINALISTS, FINAL = 8, 4, 30  # iterations of a search from every start, at half the resolution; of the best few
WIDE = (1.2, 3.0)  # spreads of the poses that searches start from, for half of them each
FACING_ITERATIONS, FACING_MARGIN = 10, 0.03  # of a search each way; score by which facing left must be better
PRIOR = 0.02  # score lost, times log 2, where distance, pitch and joints are all one spread away from the env's start


@dataclass(frozen=True)
class Alignment:
    """What fits the first frame best."""

    camera: Camera
    start_qpos: Float[np.ndarray, " nq"]  # feet on the floor
    iou: float  # of the rendered mask with the frame's


def fit_start(
    env: Any,
    mask: Bool[np.ndarray, "H W"],
    *,
    num_starts: int = 24,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Alignment:
    """Fits the side camera and the start pose to a mask.

    Args:
        env: From `nil_jax.envs.make`.
        mask: Robot in the first frame.
        num_starts: Short searches, each from one of the best of 1024 poses drawn around the env's start pose, half of
            them with left and right swapped. The best four go on, and the best of those once more.
        seed: Of the candidates.
        progress: Called with the finished part, in [0, 1].

    Raises:
        ValueError: The mask is empty.
    """
    problem, coarse, rng = _problem(env, mask), _problem(env, _halved(mask)), np.random.default_rng(seed)
    tick = _counter(progress, num_starts * HEAT + (FINALISTS + 1) * FINAL)
    heats = [search(coarse, rng, start, HEAT, tick) for start in _starts(coarse, rng, num_starts)]
    finalists = sorted(heats, key=lambda pair: -pair[1])[:FINALISTS]
    best, _ = max((search(problem, rng, start, FINAL, tick) for start, _ in finalists), key=lambda pair: pair[1])
    best, _ = search(problem, rng, best, FINAL, tick)  # which keeps its start if it finds none better
    return problem.alignment(best)


def faces_left(env: Any, mask: Bool[np.ndarray, "H W"], *, seed: int = 0) -> bool:
    """Whether the mirror image of a mask is clearly more like the robot, seen from its right, than the mask itself.

    Args:
        env: From `nil_jax.envs.make`.
        mask: Robot in the first frame.
        seed: Of the candidates.

    Raises:
        ValueError: The mask is empty.
    """
    return _rough_score(env, mask[:, ::-1], seed) > _rough_score(env, mask, seed) + FACING_MARGIN


def _rough_score(env: Any, mask: Bool[np.ndarray, "H W"], seed: int) -> float:
    problem, rng = _problem(env, mask), np.random.default_rng(seed)
    found = [search(problem, rng, start, FACING_ITERATIONS) for start in _starts(problem, rng, 2)]
    return max(score for _, score in found)


def _problem(env: Any, mask: Bool[np.ndarray, "H W"]) -> "Problem":
    if not mask.any():
        raise ValueError("mask: expected the robot in the first frame, got an empty mask; check the clip")
    camera = nominal_camera(env.mj_model, env.start_qpos, env.robot_geom_ids)
    return Problem(env, mask, camera, env.start_qpos)


def _halved(mask: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "h w"]:
    """At half the resolution, where thin limbs may break; small masks stay as they are."""
    height, width = mask.shape
    if min(height, width) < 2 * LEVELS[-1] or height % 2 or width % 2 or mask.sum() < 100:
        return mask
    return mask.reshape(height // 2, 2, width // 2, 2).mean((1, 3)) >= 0.5


def _counter(progress: Callable[[float], None] | None, total: int) -> Callable[[], None]:
    """Reports one more iteration of so many, each time it is called."""
    done = itertools.count(1)
    return lambda: progress(min(1.0, next(done) / total)) if progress else None


def search(
    problem: "Problem",
    rng: np.random.Generator,
    start: Float[np.ndarray, " P"],
    iterations: int,
    tick: Callable[[], None] = lambda: None,
) -> tuple[Float[np.ndarray, " P"], float]:
    """The cross-entropy method with a full covariance from one start: the sharpest fit seen, and its score."""
    mean, covariance = start, np.diag(np.square(problem.spread / 2))
    best, best_score = start, -np.inf
    for step in range(iterations):
        theta = rng.multivariate_normal(mean, covariance, CANDIDATES, method="cholesky").astype(np.float32)
        theta[:2] = best, mean
        theta = problem.clip(theta)
        levels = problem.evaluate(theta).levels
        # Coarse masks lead to the right valley, fine ones to its floor.
        elite = theta[np.argsort(-problem.score(theta, levels, min(1.0, 2 * step / iterations)))[:ELITES]]
        away = elite - mean  # from the old mean, so that a search on the move does not collapse
        covariance = 0.5 * covariance + 0.5 * away.T @ away / ELITES + np.diag(np.square(0.01 * problem.spread))
        mean = elite.mean(0)
        sharp = problem.score(theta, levels, 1.0)
        if sharp.max() > best_score:
            best, best_score = theta[sharp.argmax()].copy(), float(sharp.max())
        tick()
    return best, best_score


def _starts(problem: "Problem", rng: np.random.Generator, number: int) -> Float[np.ndarray, "S P"]:
    """The best of many wide draws of poses, each with the camera that fits its bounding box to the mask's."""
    spread = problem.spread.copy()
    spread[: DISTANCE + 1] = 0
    wide = spread * np.repeat(WIDE, DRAWS // 2 // len(WIDE))[:, None]
    best = []
    for side, mean in enumerate(problem.means):
        theta = problem.clip((mean + wide * rng.standard_normal((DRAWS // 2, len(mean)))).astype(np.float32))
        theta[0] = mean
        for part in theta.reshape(-1, CANDIDATES, len(mean)):
            part[:, :DISTANCE] = problem.framing(problem.evaluate(part))
        score = [problem.score(p, problem.evaluate(p).levels, 0.0) for p in theta.reshape(-1, CANDIDATES, len(mean))]
        order = np.argsort(-np.concatenate(score))[: (number + 1 - side) // 2]
        best.append(theta[order])
    return np.concatenate(best)


class _Evaluation(NamedTuple):
    levels: Float[np.ndarray, "N L"]  # soft IoU with the mask, from fine to coarse
    box: Float[np.ndarray, "N 4"]  # left, top, right, bottom of the rendered mask, in image heights
    ground: Float[np.ndarray, " N"]  # height of the lowest foot point before the robot is put on the floor, m


class Problem:
    """What the parameters mean, and how good N of them are.

    Args:
        env: The robot.
        mask: What is to be matched.
        camera: What zero stands for in the camera's parameters.
        start_qpos: Angles of the joints that are not fitted.
    """

    def __init__(self, env: Any, mask: Bool[np.ndarray, "H W"], camera: Camera, start_qpos: Float[np.ndarray, " nq"]):
        self.env, self.mask, self.camera = env, mask, camera
        self.joints = sagittal_joints(env.mj_model, env.start_qpos)
        self.low, self.high = np.asarray(env.joint_range, np.float32)[self.joints].T
        self.start = np.array(start_qpos, np.float32)
        self.start[:2], self.start[3:7] = 0.0, (1.0, 0.0, 0.0, 0.0)
        angles = self.start[7 + self.joints]
        partners, sign = sagittal_partners(env.mj_model, self.joints)
        swapped = sign * angles[partners]
        self.means = np.stack([np.concatenate([np.zeros(JOINTS), a]).astype(np.float32) for a in (angles, swapped)])
        self.spread = np.array([*SPREAD_CAMERA, *[SPREAD_JOINTS] * len(self.joints)])
        self._known = camera, jnp.asarray(self.start), jnp.asarray(self.joints)
        self._goal = np.asarray(_box(jnp.asarray(mask)[None])[0])

    def evaluate(self, theta: Float[np.ndarray, "N P"]) -> _Evaluation:
        """Always `CANDIDATES` rows, so that it is compiled once."""
        mask = jnp.asarray(self.mask)  # that of the frame that is being followed
        return jax.tree.map(np.asarray, _judge(self.env, jnp.asarray(theta, jnp.float32), mask, *self._known))

    def score(self, theta: np.ndarray, levels: Float[np.ndarray, "N L"], sharpness: float) -> Float[np.ndarray, " N"]:
        """From the mean over all levels (sharpness 0) to the plain IoU (1), less what a far-fetched pose costs."""
        return (1 - sharpness) * levels.mean(1) + sharpness * levels[:, 0] - self.cost(theta)

    def cost(self, theta: Float[np.ndarray, "N P"]) -> Float[np.ndarray, " N"]:
        """Of poses that are far from the start pose and from its left/right swap."""
        away = (theta - self.means[:, None])[..., DISTANCE:] / self.spread[DISTANCE:]
        return PRIOR * np.log1p(np.square(away)).mean(-1).min(0)  # a model without a keyframe may start far away

    def clip(self, theta: Float[np.ndarray, "N P"]) -> Float[np.ndarray, "N P"]:
        """Joints within their limits; a camera between half and twice its usual distance."""
        theta[:, DISTANCE] = np.clip(theta[:, DISTANCE], -np.log(2), np.log(2))
        theta[:, JOINTS:] = np.clip(theta[:, JOINTS:], self.low, self.high)
        return theta

    def framing(self, evaluation: _Evaluation) -> Float[np.ndarray, "N 3"]:
        """Scale and offset that bring bounding boxes, seen with neither, to the mask's."""
        box, goal = evaluation.box, self._goal
        size = np.maximum(np.max(box[:, 2:] - box[:, :2], 1), 1e-3)
        scale = np.max(goal[2:] - goal[:2]) / size
        middle, width = (box[:, :2] + box[:, 2:]) / 2, self.mask.shape[1] / self.mask.shape[0]
        axis = np.array([0.5 * width, 0.5])  # the nominal camera's principal point, in image heights
        offset = (goal[:2] + goal[2:]) / 2 - axis - (middle - axis) * scale[:, None]
        return np.concatenate([np.log(scale)[:, None], offset], 1)

    def alignment(self, theta: Float[np.ndarray, " P"]) -> Alignment:
        """One candidate in full."""
        rows = np.tile(theta, (CANDIDATES, 1)).astype(np.float32)
        evaluation, known = self.evaluate(rows), (jnp.asarray(self.mask), *self._known)
        cameras, poses = _candidates(jnp.asarray(rows), *known)
        qpos = np.array(poses[0])
        qpos[2] -= evaluation.ground[0]
        return Alignment(jax.tree.map(lambda x: x[0], cameras), qpos, float(evaluation.levels[0, 0]))


def _candidates(
    theta: Float[Array, "N P"],
    mask: Bool[Array, "H W"],
    camera: Camera,
    start: Float[Array, " nq"],
    joints: Int[Array, " J"],
) -> tuple[Camera, Float[Array, "N nq"]]:
    """What parameters stand for. The scale is that of the picture: a camera further away has a longer focal length."""
    far = jnp.exp(theta[:, DISTANCE])
    height, width = mask.shape
    cameras = Camera(
        position=jnp.tile(camera.position, (len(theta), 1)).at[:, 1].mul(far),
        rotation=jnp.tile(camera.rotation, (len(theta), 1, 1)),
        focal=camera.focal * far * jnp.exp(theta[:, SCALE]),
        center=camera.center[None] + theta[:, RIGHT : DOWN + 1] * jnp.array([[height / width, 1.0]]),
    )
    half = theta[:, PITCH] / 2
    qpos = jnp.tile(start, (len(theta), 1)).at[:, 3].set(jnp.cos(half)).at[:, 5].set(jnp.sin(half))
    return cameras, qpos.at[:, 7 + joints].set(theta[:, JOINTS:])


@partial(jax.jit, static_argnames="env")
def _judge(env: Any, theta: Float[Array, "N P"], mask: Bool[Array, "H W"], *known: Any) -> _Evaluation:
    """Puts each pose on the floor, renders it, and compares; compiled once per robot and mask size."""
    cameras, qpos = _candidates(theta, mask, *known)
    geom_xpos, geom_xmat = jax.vmap(partial(envs.forward_kinematics, env.mjx_model))(qpos)
    ground = env.lowest_point(geom_xpos, geom_xmat)
    geom_xpos = geom_xpos.at[..., 2].add(-ground[:, None])
    scene, target = make_scene(env.mj_model, env.robot_geom_ids), jnp.zeros((len(qpos), 3))
    height, width = mask.shape
    masks = render_masks(scene, geom_xpos, geom_xmat, cameras, target, height=height, width=width)
    levels = jnp.stack([soft_iou(masks, mask, block) for block in LEVELS], -1)
    return _Evaluation(levels, _box(masks), ground)


def sagittal_joints(mj_model: mujoco.MjModel, qpos: Float[np.ndarray, " nq"]) -> np.ndarray:
    """Hinges (index into `qpos[7:]`) whose axis lies within 45 degrees of the world's y axis at `qpos`."""
    data = mujoco.MjData(mj_model)
    data.qpos[:] = qpos
    mujoco.mj_kinematics(mj_model, data)
    across = (np.abs(data.xaxis[:, 1]) > np.sqrt(0.5) - 1e-6) & (mj_model.jnt_type == mujoco.mjtJoint.mjJNT_HINGE)
    return mj_model.jnt_qposadr[across] - 7


def sagittal_partners(mj_model: mujoco.MjModel, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of some joints the one on the other side of the body, or itself if that is none of them.

    Returns:
        Their indices among the joints, and the signs (1 or -1) of the mirrored angles.
    """
    partner, sign = mirror_joints(mj_model)
    among = np.where(np.isin(partner[joints], joints), partner[joints], joints)
    return np.searchsorted(joints, among), np.where(among == joints, 1.0, sign[joints])


def nominal_camera(mj_model: mujoco.MjModel, qpos: Float[np.ndarray, " nq"], geom_ids: np.ndarray) -> Camera:
    """A side camera that sees the whole robot at `qpos`, from three times its size, at half its height."""
    data = mujoco.MjData(mj_model)
    data.qpos[:] = qpos
    mujoco.mj_kinematics(mj_model, data)
    centres, radii = data.geom_xpos[geom_ids] - [qpos[0], 0.0, 0.0], mj_model.geom_rbound[geom_ids, None]
    low, high = (centres - radii).min(0), (centres + radii).max(0)
    size = float(max(high[0] - low[0], high[2] - low[2]))
    return side_camera(ROBOT_SIZES * size, float(low[2] + high[2]) / 2, focal=0.8 * ROBOT_SIZES)


def soft_iou(masks: Bool[Array, "N H W"], mask: Bool[Array, "H W"], block: int) -> Float[Array, " N"]:
    """IoU of masks averaged over blocks of pixels: sum of minima over sum of maxima; block 1 is the plain IoU."""
    a, b = _pool(masks.astype(jnp.float32), block), _pool(mask[None].astype(jnp.float32), block)
    return jnp.minimum(a, b).sum((1, 2)) / jnp.maximum(jnp.maximum(a, b).sum((1, 2)), 1e-6)


def _pool(x: Float[Array, "N H W"], block: int) -> Float[Array, "N h w"]:
    number, height, width = x.shape
    x = jnp.pad(x, [(0, 0), (0, -height % block), (0, -width % block)])
    return x.reshape(number, x.shape[1] // block, block, x.shape[2] // block, block).mean((2, 4))


def _box(masks: Bool[Array, "N H W"]) -> Float[Array, "N 4"]:
    """Left, top, right and bottom of the bounding boxes, in image heights; the whole image where a mask is empty."""
    (left, right), (top, bottom) = (
        (jnp.argmax(seen, -1), seen.shape[-1] - jnp.argmax(seen[:, ::-1], -1)) for seen in (masks.any(1), masks.any(2))
    )
    return jnp.stack([left, top, right, bottom], -1).astype(jnp.float32) / masks.shape[1]
