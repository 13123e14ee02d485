"""Distillation: a small student learns, from random motions of robots, where bodies are and what a teacher sees.

Every clip that it learns from is drawn by the batched renderer and restyled: other colours, contrast down to a bare
silhouette, noise, blur, and a camera that is a little off. Targets are free: the true distances of all pairs of clips
(`envs.Body.distance`), and the teacher's embeddings, centred and projected onto their principal components.

Axes: R robots, M clips, T frames, S side of a frame, D coordinates, K keypoints, E of the teacher's part.
"""

import importlib.metadata
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from nil_jax.envs import Body, RobotEnv
from nil_jax.motions import near, random_motions
from nil_jax.reference.align import nominal_camera
from nil_jax.rendering import Camera, make_scene, render
from nil_jax.rendering.shading import BRIGHTEST
from nil_jax.rewards import Encoder, embed_clips
from nil_jax.rewards.student import Student, StudentConfig, save_student

RATE = 25.0  # Hz, of the frames of a clip
VARIANTS = 4  # clips of one motion: itself and three that are near it
ZOOM, SHIFT, PITCH, FAR = 0.06, 0.03, 0.06, 0.5  # of the camera: log, image heights, rad, log
CLOSE = 0.05  # robot sizes: errors of distances count relative to the distance, but for closer pairs
TEACHER_BATCH = 16
HELD_OUT = 10  # one motion in so many is kept from the student


@dataclass(frozen=True)
class DistillConfig:
    """How a student is taught.

    Raises:
        ValueError: a number out of range.
    """

    num_steps: int = 2000  # updates
    num_motions: int = 12  # of one robot in an update, with four clips each
    teacher_clips: int = 1200  # clips of all robots that the teacher embeds before
    teacher_loss: float = 0.1  # its weight beside that of the distances
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self):
        for name in ("num_steps", "num_motions", "teacher_clips"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a whole number >= 1, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate: expected a number > 0, got {self.learning_rate}")
        if not self.teacher_loss >= 0:
            raise ValueError(f"teacher_loss: expected a number >= 0, got {self.teacher_loss}")


@dataclass(frozen=True)
class Painter:
    """Draws clips of one robot, from the side."""

    body: Body
    scene: Any
    camera: Camera

    @classmethod
    def of(cls, env: RobotEnv) -> "Painter":
        """With the camera that a reference of this robot would have."""
        camera = nominal_camera(env.mj_model, env.start_qpos, env.robot_geom_ids)
        return cls(Body(env), make_scene(env.mj_model, env.robot_geom_ids), camera)

    def __call__(
        self, coords: Float[np.ndarray, "M T D"], size: int, rng: np.random.Generator
    ) -> tuple[UInt8[np.ndarray, "M T S S 3"], Float[np.ndarray, "M T K 3"]]:
        """Clips, each by a camera of its own, and their keypoints."""
        count, length = coords.shape[:2]
        qpos = self.body.qpos(coords).reshape(count * length, -1)
        geom_xpos, geom_xmat, _, points = self.body.kinematics(qpos)
        points = ((points - qpos[:, None, :3] * [1, 0, 0]) / self.body.size).reshape(count, length, -1, 3)
        cameras = jax.tree.map(lambda leaf: jnp.repeat(leaf, length, 0), self._cameras(count, rng))
        target = jnp.asarray(qpos[:, :3] * [1, 0, 0], jnp.float32)
        frames = _draw(self.scene, jnp.asarray(geom_xpos), jnp.asarray(geom_xmat), cameras, target, size)
        return np.asarray(frames).reshape(count, length, size, size, 3), points

    def _cameras(self, count: int, rng: np.random.Generator) -> Camera:
        zoom, far, pitch = (spread * rng.standard_normal(count) for spread in (ZOOM, FAR / 2, PITCH))
        far = np.exp(np.clip(far, -FAR, FAR))
        turn = np.zeros((count, 3, 3))
        turn[:, 0, 0] = 1
        turn[:, 1, 1] = turn[:, 2, 2] = np.cos(pitch)
        turn[:, 1, 2], turn[:, 2, 1] = -np.sin(pitch), np.sin(pitch)
        position = np.asarray(self.camera.position) * np.stack([np.ones(count), far, np.ones(count)], -1)
        # Raised or lowered as it is tilted, so that it still looks at the robot.
        position[:, 2] -= np.tan(pitch) * np.abs(position[:, 1])
        return Camera(
            position=jnp.asarray(position, jnp.float32),
            rotation=jnp.asarray(np.asarray(self.camera.rotation) @ turn, jnp.float32),
            focal=jnp.asarray(float(self.camera.focal) * far * np.exp(zoom), jnp.float32),
            center=jnp.asarray(np.asarray(self.camera.center) + SHIFT * rng.standard_normal((count, 2)), jnp.float32),
        )


@partial(jax.jit, static_argnames="size")
def _draw(scene, geom_xpos, geom_xmat, cameras, target, size) -> UInt8[Array, "N S S 3"]:
    return render(scene, geom_xpos, geom_xmat, cameras, target, height=size, width=size).rgb


def restyled(frames: UInt8[Array, "M T S S 3"], key: PRNGKeyArray) -> UInt8[Array, "M T S S 3"]:
    """The same motions as if other hands had drawn them; one style a clip."""
    keys = jax.random.split(key, 7)

    def each(index: int, low: float, high: float, channels: int = 1) -> Array:
        return jax.random.uniform(keys[index], (len(frames), 1, 1, 1, channels), minval=low, maxval=high)

    x = frames.astype(jnp.float32) / 255
    robot = jnp.any(frames < 255, axis=-1, keepdims=True)
    inside = jnp.maximum(jnp.sum(robot, axis=(1, 2, 3), keepdims=True), 1)
    colourless = each(0, 0.0, 1.0)
    x = (1 - colourless) * x + colourless * jnp.mean(x, axis=-1, keepdims=True)
    mean = jnp.sum(x * robot, axis=(1, 2, 3), keepdims=True) / inside
    x = each(1, 0.05, 0.75) + each(2, -0.15, 0.15, 3) + each(3, 0.0, 1.4) * (x - mean)
    x = x + each(4, 0.0, 0.05) * jax.random.normal(keys[5], frames.shape)
    x = jnp.where(robot, jnp.clip(x, 0.0, BRIGHTEST), 1.0)
    blur = x
    for axis in (2, 3):
        blur = (jnp.roll(blur, 1, axis) + 2 * blur + jnp.roll(blur, -1, axis)) / 4  # the border is background
    softness = each(6, 0.0, 1.0)
    return jnp.round(255 * ((1 - softness) * x + softness * blur)).astype(jnp.uint8)


def pair_distances(body: Body, points: Float[np.ndarray, "M T K 3"]) -> Float[np.ndarray, "M M"]:
    """True distances of all pairs of clips."""
    return np.stack([body.distance(points, one[None]) for one in points])


def clip_times(num_frames: int) -> Float[np.ndarray, " T"]:
    """Seconds of a clip's frames, the last at 0."""
    return np.arange(1 - num_frames, 1) / RATE


def family(body: Body, count: int, rng: np.random.Generator, times: np.ndarray) -> Float[np.ndarray, "M T D"]:
    """Coordinates of `count` random motions, and of three motions near each."""
    motions = random_motions(body, count, rng)
    return np.concatenate([motions.at(times), *[near(motions, rng).at(times) for _ in range(VARIANTS - 1)]])


@dataclass(frozen=True)
class Lessons:
    """Clips of all robots with the teacher's embeddings, calibrated."""

    frames: UInt8[np.ndarray, "M T S S 3"]
    targets: Float[np.ndarray, "M E"]  # unit length
    motion: Int[np.ndarray, " M"]  # clips near the same motion have its number

    def __len__(self) -> int:
        return len(self.frames)

    def part(self, rows: Any) -> "Lessons":
        """Some of the clips."""
        return Lessons(self.frames[rows], self.targets[rows], self.motion[rows])


def make_lessons(
    painters: Sequence[Painter],
    teacher: Encoder,
    student: StudentConfig,
    count: int,
    rng: np.random.Generator,
    report: Callable[[float], None],
) -> Lessons:
    """Draws clips at both sizes and lets the teacher embed them.

    Calibrated: less the mean over all clips, projected onto the principal components, of unit length. On robots before
    white nearly all of an embedding is common to all clips; what is left tells motions apart.

    Raises:
        ValueError: A teacher whose clips are longer than the student's.
    """
    if teacher.num_frames > student.num_frames:
        raise ValueError(
            f"teacher: expected one whose clips have at most {student.num_frames} frames, got {teacher.num_frames}"
        )
    frames, features, motion = [], [], []
    times, share = clip_times(student.num_frames), math.ceil(count / (VARIANTS * len(painters)))
    for index, painter in enumerate(painters):
        for start in range(0, share, 4):
            number = min(4, share - start)
            coords = family(painter.body, number, rng, times)
            motion.append(np.tile(index * share + start + np.arange(number), VARIANTS))
            large, _ = painter(coords, teacher.image_size, rng)
            video = large.reshape(-1, *large.shape[2:])
            clips = np.arange(len(video)).reshape(len(coords), -1)
            if teacher.num_frames != student.num_frames:
                clips = clips[:, np.linspace(0, student.num_frames - 1, teacher.num_frames).round().astype(int)]
            features.append(embed_clips(teacher, video, clips))
            small = jax.image.resize(
                jnp.asarray(large, jnp.float32), (*large.shape[:2], *_square(student), 3), "linear"
            )
            frames.append(np.asarray(jnp.round(small), np.uint8))
            report((index + (start + number) / share) / len(painters))
    features = np.concatenate(features).astype(np.float64)
    centred = features - features.mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    targets = centred @ axes[: student.teacher_size].T
    targets = np.pad(targets, [(0, 0), (0, student.teacher_size - targets.shape[1])])
    targets /= np.maximum(np.linalg.norm(targets, axis=1, keepdims=True), 1e-9)
    return Lessons(np.concatenate(frames), targets.astype(np.float32), np.concatenate(motion))


def _square(student: StudentConfig) -> tuple[int, int]:
    return student.image_size, student.image_size


def distill(
    envs: Sequence[RobotEnv],
    teacher: Encoder | None,
    output: Path,
    *,
    config: DistillConfig | None = None,
    student: StudentConfig | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> dict[str, float]:
    """Teaches a student on random motions of robots and saves it as a folder that `load_encoder` reads.

    Args:
        envs: The robots, one or more.
        teacher: From `load_encoder`; without it the student learns distances alone.
        output: The folder.
        config: How long and how fast.
        student: Sizes.
        progress: Called with the stage and its finished part in [0, 1].

    Returns:
        What it has learned, on motions that it has not seen: `pose_spearman`, rank correlation of its distances with
        the true ones, over pairs of clips of a robot; `teacher_spearman`, of the cosines of its teacher's part with
        those of the teacher (only with one).

    Raises:
        ValueError: No robot, or a teacher whose clips are longer than the student's.
    """
    if not envs:
        raise ValueError("robots: expected one or more, got none")
    config, student = config or DistillConfig(), student or StudentConfig()
    report, rng = progress or (lambda stage, part: None), np.random.default_rng(config.seed)
    painters = [Painter.of(env) for env in envs]
    lessons = None
    if teacher is not None:
        lessons = make_lessons(painters, teacher, student, config.teacher_clips, rng, partial(report, "teacher"))
    # Whole motions are held out: a clip near one that was seen would not be new.
    held_out = lessons.motion % HELD_OUT == 0 if lessons else np.zeros(0, bool)
    seen, unseen = (lessons.part(~held_out), lessons.part(held_out)) if lessons else (None, None)
    params = _train(painters, seen, student, config, rng, partial(report, "student"))
    found = evaluate(painters, unseen, student, params, rng)
    provenance = {
        "robots": {env.spec.handle: env.fingerprint for env in envs},
        "teacher": teacher.digest if teacher else None,
        "learned": found,
        "nil_jax": importlib.metadata.version("nil-jax"),
        **asdict(config),
    }
    save_student(output, student, params, provenance)
    return found


def _train(painters, lessons: Lessons | None, student: StudentConfig, config: DistillConfig, rng, report) -> Any:
    network, key = Student(student), jax.random.key(config.seed)
    clip = jnp.zeros((1, student.num_frames, *_square(student), 3), jnp.uint8)
    params = network.init(key, clip)["params"]
    warmup = max(1, config.num_steps // 20)
    rate = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, config.num_steps + 1)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=1e-4))
    state, times = optimizer.init(params), clip_times(student.num_frames)

    @jax.jit
    def update(params, state, key, frames, distances, taught, targets):
        key_pose, key_teacher = jax.random.split(key)

        def loss(params):
            clips = jnp.concatenate([restyled(frames, key_pose), restyled(taught, key_teacher)])
            pose, embedding = network.apply({"params": params}, clips)
            error = distance_loss(pose[: len(frames)], distances)
            if not len(taught):
                return error
            return error + config.teacher_loss * jnp.mean(1 - jnp.sum(embedding[len(frames) :] * targets, -1))

        value, gradient = jax.value_and_grad(loss)(params)
        change, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, change), state, value

    for step in range(config.num_steps):
        painter = painters[step % len(painters)]
        frames, points = painter(family(painter.body, config.num_motions, rng, times), student.image_size, rng)
        taught, targets = frames[:0], np.zeros((0, student.teacher_size), np.float32)
        if lessons:
            part = lessons.part(rng.integers(0, len(lessons), TEACHER_BATCH))
            taught, targets = part.frames, part.targets
        distances = jnp.asarray(pair_distances(painter.body, points), jnp.float32)
        key, this = jax.random.split(key)
        params, state, _ = update(params, state, this, frames, distances, taught, targets)
        report((step + 1) / config.num_steps)
    return params


def distance_loss(pose: Float[Array, "M T P"], distances: Float[Array, "M M"]) -> Float[Array, ""]:
    """How far the distances of poses are from the true ones: `mean (d - d*)^2 / (d* + 0.05)` over pairs."""
    flat = pose.reshape(len(pose), -1) / math.sqrt(pose.shape[1])
    squared = jnp.sum(jnp.square(flat[:, None] - flat[None]), axis=-1)
    found = jnp.sqrt(squared + 1e-8)
    return jnp.mean(jnp.square(found - distances) / (distances + CLOSE))


def evaluate(
    painters: Sequence[Painter],
    lessons: Lessons | None,
    student: StudentConfig,
    params: Any,
    rng: np.random.Generator,
    batches: int = 4,
) -> dict[str, float]:
    """Rank correlations on fresh motions, with fresh styles; see `distill`."""
    from scipy.stats import spearmanr

    apply = jax.jit(partial(Student(student).apply, {"params": params}))
    times, side = clip_times(student.num_frames), student.image_size
    poses = [
        _pose_spearman(painter, lambda frames: apply(frames)[0], times, side, rng) for painter in [*painters] * batches
    ]
    result = {"pose_spearman": float(np.mean(poses))}
    if lessons is not None and len(lessons) > 2:
        _, z = apply(restyled(jnp.asarray(lessons.frames), jax.random.key(1)))
        upper = np.triu_indices(len(lessons), 1)
        cosines = [(np.asarray(part) @ np.asarray(part).T)[upper] for part in (z, lessons.targets)]
        result["teacher_spearman"] = float(spearmanr(*cosines).statistic)
    return result


def fidelity(encoder: Encoder, env: RobotEnv, *, batches: int = 2, seed: int = 0) -> float:
    """Rank correlation of an encoder's distances with the true ones, over pairs of random motions of a robot.

    Args:
        encoder: A student; others are not meant for Euclidean distances.
        env: The robot.
        batches: Of 48 clips each.
        seed: Of the motions and their styles.
    """
    painter, rng, times = Painter.of(env), np.random.default_rng(seed), clip_times(encoder.num_frames)
    embed = jax.jit(partial(encoder.embed, encoder.params))
    return float(np.mean([_pose_spearman(painter, embed, times, encoder.image_size, rng) for _ in range(batches)]))


def _pose_spearman(painter: Painter, embed: Callable[[Array], Array], times, side: int, rng) -> float:
    from scipy.stats import spearmanr

    frames, points = painter(family(painter.body, 12, rng, times), side, rng)
    z = np.asarray(embed(restyled(jnp.asarray(frames), jax.random.key(rng.integers(2**31))))).reshape(len(frames), -1)
    upper = np.triu_indices(len(z), 1)
    apart = np.linalg.norm(z[:, None] - z[None], axis=-1)[upper]
    return float(spearmanr(apart, pair_distances(painter.body, points)[upper]).statistic)
