"""`Reference`: what a clip has to say to the reward, at the reward's rate, for one robot.

Axes: T ticks of the reward, S side of a frame, M side of a mask, D embedding, K frames of an encoder's clip.
"""

import importlib.metadata
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

from nil_jax.envs import Body
from nil_jax.files import one_line, read_archive, read_json
from nil_jax.reference.align import faces_left, fit_start
from nil_jax.reference.clip_masks import SEGMENTERS, find_masks
from nil_jax.reference.cycle import find_cycle
from nil_jax.reference.motion import fit_motion, steadied
from nil_jax.reference.segment import crop, square_crop
from nil_jax.reference.tempo import hints, tempo
from nil_jax.reference.verdict import in_words, judge
from nil_jax.reference.video import Video, interpolate_masks, read_video, tick_times
from nil_jax.rendering import Camera
from nil_jax.rewards import Encoder, clip_indices, embed_clips

FORMAT = 1  # of the folder; raised when older code could not read it
ARRAYS, SETTINGS = "reference.npz", "reference.json"
CAMERA_ARRAYS = {"position": (3,), "rotation": (3, 3), "focal": (), "center": (2,)}  # with their shapes
SEGMENTER_MODEL = "facebook/sam2.1-hiera-tiny"
FACINGS = ("auto", "right", "left")
MAX_TICKS = 6000  # two gigabytes of frames and masks, and hours of fitting
EMBEDDING = "embedding_"  # prefix of an embedding's name among the arrays; the encoder's digest follows


@dataclass(frozen=True)
class Reference:
    """A clip made ready: one frame, one mask and one embedding per tick of the reward."""

    frames: UInt8[np.ndarray, "T S S 3"]  # robot on white
    masks: Bool[np.ndarray, "T M M"]
    fps: float  # ticks per second
    camera: Camera  # fitted to the first frame; follows the base along x
    start_qpos: Float[np.ndarray, " nq"]  # fitted to the first frame
    loop: bool  # the last tick is followed by the first
    embeddings: Mapping[str, Float[np.ndarray, "T D"]] = field(default_factory=dict)  # encoder digest -> embeddings
    provenance: Mapping[str, Any] = field(default_factory=dict)  # JSON values: where it comes from, how it was made
    motion: Float[np.ndarray, "T nq"] | None = None  # poses fitted to all masks, with the travel of feet that hold

    def __post_init__(self):
        _expect("frames", self.frames, np.uint8, ("T", "S", "S", 3))
        _expect("masks", self.masks, np.bool_, (len(self.frames), "M", "M"))
        _expect("start_qpos", self.start_qpos, np.floating, ("nq",))
        if self.camera.orthographic:
            raise ValueError("camera: expected a perspective one, which video models imagine, got an orthographic one")
        if self.motion is not None:
            _expect("motion", self.motion, np.floating, (len(self.frames), len(self.start_qpos)))
        for name, shape in CAMERA_ARRAYS.items():
            _expect(f"camera.{name}", np.asarray(getattr(self.camera, name)), np.floating, shape)
        for digest, embedding in self.embeddings.items():
            _expect(f"embeddings[{digest}]", embedding, np.floating, (len(self.frames), "D"))
        if not self.masks[0].any():
            raise ValueError("masks: expected the robot in the first mask, got an empty one; prepare the clip again")
        if not 0.1 <= self.fps <= 1000:  # NaN is not, either
            raise ValueError(f"fps: expected ticks per second from 0.1 to 1000, got {self.fps}")

    @property
    def travel_speed(self) -> float | None:
        """Mean speed of the fitted poses along x, m/s; None without poses."""
        if self.motion is None:
            return None
        return float(self.motion[-1, 0] - self.motion[0, 0]) * self.fps / max(1, len(self.motion) - 1)

    def check_robot(self, env: Any) -> None:
        """Raises ValueError when this reference was made for another robot."""
        if self.provenance.get("fingerprint") != env.fingerprint:
            made_for = f"{self.provenance.get('robot')} ({self.provenance.get('fingerprint')})"
            raise ValueError(
                f"reference: expected one made for {env.spec.name} ({env.fingerprint}), got one for {made_for}; "
                "prepare the clip again with this robot"
            )

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Writes a folder that `load` reads; either all of it or nothing.

        Raises:
            ValueError: The folder exists and `overwrite` is False.
        """
        folder = Path(folder)
        if folder.exists() and not overwrite:
            raise ValueError(
                f"reference: expected a new folder, got {folder}, which exists; choose another or overwrite"
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        arrays = {f"camera_{name}": np.asarray(getattr(self.camera, name)) for name in CAMERA_ARRAYS}
        arrays |= {EMBEDDING + digest: value for digest, value in self.embeddings.items()}
        arrays |= {name: getattr(self, name) for name in ("frames", "masks", "start_qpos")}
        arrays |= {} if self.motion is None else {"motion": self.motion}
        settings = {"format": FORMAT, "fps": self.fps, "loop": self.loop, "provenance": dict(self.provenance)}
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
            new = Path(scratch) / "new"
            new.mkdir()
            np.savez_compressed(new / ARRAYS, **arrays)
            (new / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")
            if folder.exists():
                os.replace(folder, Path(scratch) / "old")
            os.replace(new, folder)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "Reference":
        """Reads what `save` wrote.

        Raises:
            ValueError: Not such a folder, or a damaged one.
        """
        folder = Path(folder)
        for name in (ARRAYS, SETTINGS):
            if not (folder / name).is_file():
                raise ValueError(
                    f"reference: expected a folder with {name}, got {folder}; make one with `nil-jax prepare`"
                )
        try:
            settings = read_json(folder / SETTINGS, "reference")
            if settings["format"] != FORMAT:
                raise ValueError(f"format: expected {FORMAT}, got {settings['format']}")
            arrays = read_archive(folder / ARRAYS)
            camera = Camera(**{name: jnp.asarray(arrays[f"camera_{name}"]) for name in CAMERA_ARRAYS})
            embeddings = {k.removeprefix(EMBEDDING): v for k, v in arrays.items() if k.startswith(EMBEDDING)}
            parts = {name: arrays[name] for name in ("frames", "masks", "start_qpos")} | {
                "motion": arrays.get("motion")
            }
            fps, loop, provenance = float(settings["fps"]), settings["loop"], dict(settings["provenance"])
            if not isinstance(loop, bool):
                raise ValueError(f"loop: expected true or false, got {loop!r}")
            found = cls(fps=fps, loop=loop, camera=camera, embeddings=embeddings, provenance=provenance, **parts)
            remarks(found)  # which reads what the provenance says
            return found
        except Exception as error:  # a file that is no such archive can fail in any way
            detail = f"no {error}" if isinstance(error, KeyError) else one_line(error)
            raise ValueError(
                f"reference {folder}: expected a complete one, got a damaged one ({detail}); prepare the clip again"
            ) from None


def fit_in_words(reference: Reference) -> str:
    """How well camera and poses fit, and what speed the poses ask for."""
    words = f"first-frame IoU {reference.provenance['first_frame_iou']:.2f}"
    speed = reference.travel_speed
    return words if speed is None else f"{words}, poses that travel at {speed:.2f} m/s"


def remarks(reference: Reference) -> list[str]:
    """What people are told of a reference before it is learned from, a line each."""
    made = reference.provenance
    lines = [fit_in_words(reference)] if "first_frame_iou" in made else []
    if "verdict" in made and made["verdict"]["verdict"] != "good":
        lines.append(f"warning: the clip is {in_words(made['verdict'])} (see the preview of nil-jax prepare)")
    return lines + [f"hint: {hint}" for hint in hints(made)]


def is_reference(path: Any) -> bool:
    """Whether a path is a folder that `Reference.save` wrote."""
    return isinstance(path, str | Path) and (Path(path) / ARRAYS).is_file()


def _expect(name: str, array: Any, dtype: type, shape: tuple) -> None:
    """Checks dtype and shape; letters stand for any positive size, the same letter for the same size."""
    if not np.issubdtype(array.dtype, dtype):
        raise TypeError(f"{name}: expected {dtype.__name__}, got {array.dtype}")
    sizes: dict[str, int] = {}
    fits = len(array.shape) == len(shape) and all(
        got > 0 and got == (sizes.setdefault(want, got) if isinstance(want, str) else want)
        for want, got in zip(shape, array.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name}: expected shape {list(shape)}, got {list(array.shape)}")
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")


@dataclass(frozen=True)
class ReferenceConfig:
    """How a clip becomes a Reference."""

    fps: float = 25.0  # ticks of the reward per second
    mask_size: int = 64
    frame_size: int = 224
    loop: bool = False  # the clip is a cycle
    cycle: bool = False  # cut it to the stride that closes best, which then loops
    track: bool = True  # fit poses to all masks, and hold the picture still where the clip's camera drifts
    speed: float = 1.0  # 2.0 plays the clip twice as fast: for clips in slow motion
    facing: Literal["auto", "right", "left"] = "auto"  # of the robot in the clip; one that faces left is mirrored
    segmenter: Literal["uniform", "sam2"] = "uniform"  # sam2: for a background that is not plain
    segmenter_model: str = SEGMENTER_MODEL  # folder or Hugging Face id; 39 M weights, a 156 MB download

    def __post_init__(self):
        for name, low, high in (
            ("fps", 1, 1000),
            ("mask_size", 16, 512),
            ("frame_size", 16, 1024),
            ("speed", 0.05, 20),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}: expected a number from {low} to {high}, got {getattr(self, name)}")
        for name, allowed in (("facing", FACINGS), ("segmenter", SEGMENTERS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.segmenter == "uniform" and self.segmenter_model != SEGMENTER_MODEL:
            raise ValueError(f"segmenter_model: expected it with --segmenter sam2, got {self.segmenter_model!r} alone")
        if self.cycle and (self.loop or not self.track):
            raise ValueError("cycle: expected it with --track and without --loop, as it cuts a loop by fitted poses")


def prepare_reference(
    env: Any,
    video: str | Path | np.ndarray | Video,
    *,
    source_fps: float | None = None,
    encoder: Encoder | None = None,
    masks: Bool[np.ndarray, "n h w"] | None = None,
    progress: Callable[[str, float], None] | None = None,
    **settings: Any,
) -> Reference:
    """From a clip to a Reference: reads, segments, resamples, fits camera and start pose, judges the clip, embeds.

    Args:
        env: The robot, from `nil_jax.envs.make`.
        video: What `read_video` takes.
        source_fps: Frames per second of the clip, for arrays and folders of frames.
        encoder: From `nil_jax.rewards.load_encoder`; without it the embeddings come later, by `with_embeddings`.
        masks: The robot in every frame of the clip, as `read_video` returns it; the segmenter then rests.
        progress: Called with the name of the stage and its finished part in [0, 1].
        **settings: Fields of `ReferenceConfig`.

    Raises:
        ValueError: The clip cannot be read or shows no robot, a setting is out of range, the masks do not fit the clip,
            or SAM 2 is asked for and cannot be loaded.
    """
    config = ReferenceConfig(**settings)
    report = progress or (lambda stage, part: None)
    report("read", 0.0)
    video = read_video(video, fps=source_fps)
    times = _times(video, config)
    report("segment", 0.0)
    wanted = config.segmenter, config.segmenter_model, masks
    seen = find_masks(env, video, *wanted, progress=partial(report, "segment"))
    square = square_crop(seen.masks)
    report("resample", 0.0)
    source_masks = crop(seen.masks, square, False)
    fine_masks = _fine_masks_at(source_masks, times, config)
    shown = _shown(times, video)
    pictures = crop(video.frames, square, 255)
    pictures[~source_masks] = 255
    frames = all_resized(pictures, config.frame_size)[shown]
    report("align", 0.0)
    tick_masks = all_resized(fine_masks, config.mask_size)
    mirrored = config.facing == "left" or (config.facing == "auto" and faces_left(env, tick_masks[0]))
    if mirrored:
        parts = frames, fine_masks, tick_masks
        frames, fine_masks, tick_masks = (np.ascontiguousarray(part[:, :, ::-1]) for part in parts)
    fit = fit_start(env, tick_masks[0], progress=partial(report, "align"))
    motion = None
    if config.track:
        follow = partial(fit_motion, env, tick_masks, fit.camera, fit.start_qpos, fps=config.fps, loop=config.loop)
        motion = follow(progress=partial(report, "track"))
        center = np.asarray(fit.camera.center)
        frames, fine_masks = (steadied(part, motion.drift, center) for part in (frames, fine_masks))
        tick_masks = all_resized(fine_masks, config.mask_size)
    found = source_masks & (seen.confidence > 0)[:, None, None]  # what was filled in was not seen
    verdict = judge(pictures, found, video.fps * config.speed, first_frame_iou=fit.iou, loop=config.loop)
    provenance = {
        "robot": env.spec.name,
        "fingerprint": env.fingerprint,
        **_origin(video),
        "crop": list(square),
        "drift": None if motion is None else motion.drift.round(5).tolist(),
        "mirrored": mirrored,
        **seen.provenance,
        "first_frame_iou": round(fit.iou, 4),
        "verdict": verdict.as_json(),
        "tempo": tempo(env, found, video.fps * config.speed),
        "nil_jax": importlib.metadata.version("nil-jax"),
        **asdict(config),
    }
    reference = Reference(frames, tick_masks, config.fps, fit.camera, fit.start_qpos, config.loop, {}, provenance)
    reference = replace(reference, motion=None if motion is None else motion.qpos)
    reference = _cut(reference, env) if config.cycle else reference
    return reference if encoder is None else with_embeddings(reference, encoder)


def _cut(reference: Reference, env: Any) -> Reference:
    """Leaves of a reference the stride that closes best."""
    steps = reference.provenance["tempo"]["steps_per_second"]
    cycle = find_cycle(Body(env), reference.motion, reference.fps, steps)
    keep = slice(cycle.first, cycle.first + cycle.ticks)
    parts = {"frames": reference.frames[keep], "masks": reference.masks[keep], "motion": cycle.qpos}
    about = {**reference.provenance, "cut": [cycle.first, cycle.ticks], "seam": round(cycle.seam, 2)}
    return replace(reference, **parts, start_qpos=cycle.qpos[0], loop=True, provenance=about)


def _origin(video: Video) -> dict[str, Any]:
    """What the provenance says of the clip."""
    return {
        "source": video.name,
        "source_sha256": video.sha256,
        "source_fps": video.fps,
        "source_frames": len(video.frames),
        "source_size": [video.frames.shape[2], video.frames.shape[1]],
        "source_shortened": video.shortened,
        **({"generated": dict(video.origin)} if video.origin else {}),
    }


def _times(video: Video, config: ReferenceConfig) -> Float[np.ndarray, " T"]:
    times = tick_times(len(video.frames), video.fps, config.fps, speed=config.speed, loop=config.loop)
    if len(times) < 2:
        raise ValueError(
            f"video {video.name}: expected a clip of at least 2 ticks at {config.fps:g} per second, "
            f"got {video.duration:.2f} s at speed {config.speed:g}; raise fps or lower speed"
        )
    if len(times) > MAX_TICKS:
        raise ValueError(
            f"video {video.name}: expected a clip of at most {MAX_TICKS} ticks, got {len(times)} at {config.fps:g} per "
            f"second and speed {config.speed:g}; lower fps or raise speed"
        )
    return times


def _shown(times: Float[np.ndarray, " T"], video: Video) -> Int[np.ndarray, " T"]:
    """The frame nearest to each time; of halves always the later one, so that the cadence is even."""
    return np.floor(times + 0.5).astype(int) % len(video.frames)


def clip_at_ticks(video: Video, reference: Reference) -> UInt8[np.ndarray, "T S S 3"]:
    """The clip as it was, background included, cut and resampled like the reference that was made from it."""
    made = reference.provenance
    config = ReferenceConfig(**{f.name: made[f.name] for f in fields(ReferenceConfig) if f.name in made})
    shown = _shown(_times(video, config), video)
    frames = crop(video.frames, tuple(made["crop"]), 255)
    frames = frames[:, :, ::-1] if made["mirrored"] else frames
    frames = all_resized(frames, config.frame_size)[shown]
    drift = np.array(made.get("drift") or np.zeros((len(frames), 3)))
    first, count = made.get("cut", (0, len(frames)))[:2]
    return steadied(frames, drift, np.asarray(reference.camera.center))[first : first + count]


def _fine_masks_at(
    masks: Bool[np.ndarray, "n h w"], times: np.ndarray, config: ReferenceConfig
) -> Bool[np.ndarray, "T F F"]:
    """Resampled at five times the final resolution (odd, so that pixel centres stay pixel centres), for thin legs."""
    return interpolate_masks(all_resized(masks, 5 * config.mask_size), times, loop=config.loop)


def resized(image: np.ndarray, side: int) -> np.ndarray:
    """A square picture at another size: averaged or linear; a mask: read at the pixel centres, as the renderer does."""
    if image.dtype == bool:
        return np.asarray(Image.fromarray(image.astype(np.uint8)).resize((side, side), Image.Resampling.NEAREST)) > 0
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))


def all_resized(images: np.ndarray, side: int) -> np.ndarray:
    """`resized` of each."""
    return np.stack([resized(image, side) for image in images])


def with_embeddings(reference: Reference, encoder: Encoder, *, batch_size: int = 8) -> Reference:
    """The reference with one embedding per tick, of the clip of K frames that ends there; as it is if it has them.

    Before the first tick stands the first frame, K - 1 times, or the end of a loop, as in the simulator after a reset.

    Args:
        reference: Any.
        encoder: From `nil_jax.rewards.load_encoder`.
        batch_size: Clips embedded at once.
    """
    if encoder.digest in reference.embeddings:
        return reference
    frames = all_resized(reference.frames, encoder.image_size)
    clips = clip_indices(len(frames), encoder.num_frames, loop=reference.loop)
    embedding = embed_clips(encoder, frames, clips, batch_size)
    return replace(reference, embeddings=dict(reference.embeddings) | {encoder.digest: embedding})
