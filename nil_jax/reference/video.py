"""Reading and writing videos. A video is T frames at an even rate; everything else about the file ends here.

Axes: T frames, H rows, W columns, S output ticks.
"""

import hashlib
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy.ndimage import distance_transform_edt

from nil_jax.files import read_json
from nil_jax.reference.decode import IMAGE_SUFFIXES, MAX_FRAMES, decode_images, decode_video

MAX_SECONDS = 30.0
MAX_BYTES = 2**32  # of a file


@dataclass(frozen=True)
class Video:
    """Frames at an even rate, and where they came from."""

    frames: UInt8[np.ndarray, "T H W 3"]
    fps: float  # frames per second
    name: str = "array"  # file or folder name, for people
    sha256: str = ""  # of the file's bytes (a folder: of its images in order; an array: of the array)
    shortened: bool = False  # True where the source went on past the limits of read_video
    origin: Mapping[str, Any] = field(default_factory=dict)  # JSON values: how a generated file was made

    def __post_init__(self):
        shape, dtype = np.shape(self.frames), getattr(self.frames, "dtype", None)
        if dtype != np.uint8:
            raise TypeError(f"frames: expected uint8 in [0, 255], got {dtype}; convert with .astype(np.uint8)")
        if len(shape) != 4 or shape[-1] != 3:
            raise ValueError(f"frames: expected shape [T, H, W, 3], got {list(shape)}")
        if shape[0] < 2:
            raise ValueError(f"video {self.name}: expected at least 2 frames, got {shape[0]}; give a longer clip")
        if min(shape[1:3]) < 16:
            raise ValueError(f"video {self.name}: expected frames of at least 16x16, got {shape[2]}x{shape[1]}")
        _expect_rate(self.fps)

    @property
    def duration(self) -> float:
        """Seconds from the first frame's start to the last frame's end."""
        return len(self.frames) / self.fps


def _expect_rate(fps: float) -> None:
    if not 0.1 <= fps <= 1000:  # NaN is not, either
        raise ValueError(f"fps: expected a rate in [0.1, 1000] frames per second, got {fps}")


def read_video(
    source: "str | Path | np.ndarray | Video", *, fps: float | None = None, max_seconds: float = MAX_SECONDS
) -> Video:
    """Reads a clip: a file that FFmpeg knows (mp4, mov, webm, gif, ...), a folder of images, or an array.

    Transparent pixels become white, pictures are turned as their metadata says, uneven frame times are made even
    (nearest frame), frames larger than 768 pixels are scaled down while reading, and what comes after `max_seconds` or
    900 frames is not read (`Video.shortened`). So memory is bounded: 1.6 GB for the frames of the longest and largest
    clip, twice that while uneven times are made even, and what FFmpeg needs for frames of at most 67 million pixels.

    Args:
        source: A path, a folder of images in name order, an array `[T, H, W, 3]` uint8, or a Video (returned as is).
        fps: Frames per second: needed for an array and a folder; a file brings its own, which this replaces.
        max_seconds: How much of the clip is read.

    Raises:
        ValueError: Nothing there, not a video, damaged, fewer than two frames, or `fps` missing or out of range.
        TypeError: An array that is not uint8.
    """
    if isinstance(source, Video):
        return source
    if fps is not None:
        _expect_rate(fps)
    if isinstance(source, np.ndarray):
        if fps is None:
            raise ValueError(
                "fps: expected frames per second with an array of frames, got none; pass source_fps=30.0 "
                "(fps=30.0 to read_video)"
            )
        limit = _most_frames(max_seconds, fps)
        digest = hashlib.sha256(np.ascontiguousarray(source)).hexdigest()
        return Video(source[:limit], float(fps), sha256=digest, shortened=len(source) > limit)
    path = Path(source)
    # os.path, because pathlib raises where a path may not be looked at, or cannot be one.
    if os.path.isdir(path):
        return _read_folder(path, fps, max_seconds)
    if not os.path.isfile(path):
        what = "another thing" if os.path.exists(path) else "nothing"
        raise ValueError(f"video: expected a file or a folder of frames, got {path}: {what} there; check the path")
    return _read_file(path, fps, max_seconds)


def _most_frames(seconds: float, fps: float) -> int:
    """As many as `decode_video` takes of a file: those that are shown before the end of the time."""
    return max(2, min(MAX_FRAMES, math.ceil(seconds * fps - 1e-6)))


def _read_folder(path: Path, fps: float | None, max_seconds: float) -> Video:
    if fps is None:
        raise ValueError(
            f"fps: expected frames per second with the folder {path}, got none; type --source-fps 30, or pass "
            "source_fps=30.0 (fps=30.0 to read_video)"
        )
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
    if not files:
        raise ValueError(f"video {path}: expected images ({', '.join(IMAGE_SUFFIXES)}) in the folder, got none")
    limit = _most_frames(max_seconds, fps)
    for name in files[:limit]:
        _expect_size(name)
    digest, frames = hashlib.sha256(), decode_images(files[:limit])
    for name in files[:limit]:
        with name.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return Video(frames, float(fps), path.name, digest.hexdigest(), shortened=len(files) > limit)


def _read_file(path: Path, fps: float | None, max_seconds: float) -> Video:
    _expect_size(path)
    frames, times, rate, shortened = decode_video(path, max_seconds)
    even, even_rate = _even(times, rate)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    pictures = frames if len(even) == len(frames) and (np.diff(even) == 1).all() else frames[even]
    return Video(pictures, float(fps or even_rate), path.name, digest, shortened, _origin(path, digest))


def _expect_size(path: Path) -> None:
    """Files with holes cost their maker nothing, and whoever reads them whole a day."""
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"video: expected a file of at most {MAX_BYTES >> 30} GB, got {path}")


def sidecar(path: str | Path) -> Path:
    """The file beside a generated video that says how it was made."""
    return Path(path).with_suffix(".json")


def _origin(path: Path, digest: str) -> Mapping[str, Any]:
    """What the file beside a video says of exactly this video; nothing where there is no such file."""
    try:
        made = read_json(sidecar(path), "clip")
        return made if made["sha256"] == digest else {}
    except (ValueError, KeyError):
        return {}


def _even(times: Float[np.ndarray, " T"], rate: float) -> tuple[Int[np.ndarray, " S"], float]:
    """Indices that turn frames at `times` into an even rate, and that rate: as they are where they are already even."""
    if len(times) < 2:
        return np.arange(len(times)), rate
    steps = np.diff(times)
    step = max(float(np.median(steps)), (times[-1] - times[0]) / (MAX_FRAMES - 1))
    if np.all(np.abs(steps - step) < 0.2 * step):
        return np.arange(len(times)), (len(times) - 1) / float(times[-1] - times[0])
    count = round((times[-1] - times[0]) / step) + 1
    return nearest(times, times[0] + step * np.arange(count)), 1 / step


def write_video(path: str | Path, frames: UInt8[np.ndarray, "T H W 3"], fps: float) -> None:
    """Writes an mp4 (H.264, plays everywhere), the same file for the same frames.

    Odd sizes get a last row or column twice, as the format wants even ones.

    Args:
        path: File to write; an existing one is replaced.
        frames: uint8 in [0, 255].
        fps: Frames per second.
    """
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
        raise ValueError(f"frames: expected shape [T, H, W, 3], got {list(frames.shape)}")
    if frames.dtype != np.uint8:
        raise TypeError(f"frames: expected uint8 in [0, 255], got {frames.dtype}; convert with .astype(np.uint8)")
    write_frames(path, frames, fps)


def write_frames(path: str | Path, frames: Iterable[UInt8[np.ndarray, "H W 3"]], fps: float) -> None:
    """`write_video` of frames that are made one after the other."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": "18"})
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # with several, the same frames now and then make another file
        for frame in frames:
            height, width = frame.shape[:2]
            frame = np.pad(frame, [(0, height % 2), (0, width % 2), (0, 0)], mode="edge")
            if not stream.codec_context.is_open:
                stream.height, stream.width = frame.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def nearest(times: Float[np.ndarray, " T"], wanted: Float[np.ndarray, " S"]) -> Int[np.ndarray, " S"]:
    """Index of the frame whose time is nearest to each wanted time; `times` rises."""
    right = np.clip(np.searchsorted(times, wanted), 1, len(times) - 1)
    return np.where(wanted - times[right - 1] <= times[right] - wanted, right - 1, right)


def tick_times(num_frames: int, video_fps: float, fps: float, *, speed: float = 1.0, loop: bool = False) -> np.ndarray:
    """Times at which a clip is sampled, in source frames: `[S]` float, the first is 0.

    A clip that does not loop ends at its last frame. A loop also plays the step from the last frame back to the first,
    and its rate is bent so that a whole number of ticks fits (by at most half a tick a loop).

    Args:
        num_frames: Frames of the clip.
        video_fps: Their rate.
        fps: Ticks per second of the result.
        speed: 2.0 plays the clip twice as fast.
        loop: The last frame is followed by the first.
    """
    step = video_fps * speed / fps
    if loop:
        ticks = max(1, round(num_frames / step))
        return np.arange(ticks) * (num_frames / ticks)
    # The small term keeps the last frame where rounding would lose it.
    return np.arange(int((num_frames - 1) / step + 1e-6) + 1) * step


def interpolate_masks(
    masks: Bool[np.ndarray, "T H W"], times: Float[np.ndarray, " S"], *, loop: bool = False
) -> Bool[np.ndarray, "S H W"]:
    """Masks between frames, without ghosts: interpolates the signed distances of the two neighbours, not the pixels.

    A part that moves by more than its own thickness between two frames vanishes half-way: the source rate has to be
    enough for that.

    Args:
        masks: Masks of the source frames.
        times: Wanted times in source frames.
        loop: Times past the last frame go back to the first.
    """
    distances: dict[int, np.ndarray] = {}
    result = np.empty((len(times), *masks.shape[1:]), bool)
    for tick, time in enumerate(times):
        left = int(time)
        part = time - left
        right = (left + 1) % len(masks) if loop else min(left + 1, len(masks) - 1)
        if part < 1e-3 or part > 1 - 1e-3:
            result[tick] = masks[left if part < 0.5 else right]
            continue
        distances = {i: distances[i] if i in distances else signed_distance(masks[i]) for i in (left, right)}
        result[tick] = (1 - part) * distances[left] + part * distances[right] < 0
    return result


def signed_distance(mask: Bool[np.ndarray, "H W"]) -> Float[np.ndarray, "H W"]:
    """Distance to the mask's outline in pixels, negative inside; an empty mask is far away everywhere."""
    if not mask.any():
        return np.full(mask.shape, float(max(mask.shape)))
    if mask.all():
        return np.full(mask.shape, -float(max(mask.shape)))
    return distance_transform_edt(~mask) - distance_transform_edt(mask)  # pyright: ignore
