"""Pictures from files that anyone may have made: as they are meant to be seen, in bounded memory.

Axes: T frames, H rows, W columns.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # whatever the name says; of Pillow's others, one starts a program
# FFmpeg also reads playlists, which name other files, and text as drawings: a clip is none of those.
CONTAINERS = (
    "mov,matroska,avi,gif,apng,webp,mpegts,mpeg,mpegvideo,m4v,h264,hevc,obu,ivf,flv,asf,ogg,nut,mxf,dv,mjpeg,"
    "yuv4mpegpipe"
)
MAX_FRAMES = 900
MAX_SIDE = 768  # px, of a frame as returned; with MAX_FRAMES this bounds a decoded video to 1.6 GB
MAX_PIXELS = 2**26  # of a frame as stored: 8192 x 8192, twice 8K video
LIBRARIES = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders of these leave transparency out


class Decoded(NamedTuple):
    """What a file holds, up to the limits."""

    frames: UInt8[np.ndarray, "T H W 3"]
    times: Float[np.ndarray, " T"]  # seconds after the first frame, rising
    rate: float  # frames per second, as the file says
    shortened: bool  # True where the file goes on


def decode_video(path: Path, max_seconds: float) -> Decoded:
    """The frames of a video file and when they are shown; what comes after `max_seconds` or 900 frames is not decoded.

    Raises:
        ValueError: Not a video, damaged, without frames, or with frames of several sizes or over 67 million pixels.
    """
    frames, times = np.empty((0, 0, 0, 3), np.uint8), []
    try:
        # The prefix, because FFmpeg takes what stands before a colon in a name for a protocol.
        with av.open(f"file:{path}", options=_limits(), metadata_errors="replace") as container:
            stream = _video_stream(container, path)
            rate = float(stream.average_rate or stream.guessed_rate or 30)
            aspect = min(max(float(stream.sample_aspect_ratio or 1), 1 / 4), 4.0)  # of a pixel: not always square
            reformatter = VideoReformatter()  # one for all: each starts threads of its own
            for frame, time in _timed(_decoded(container, stream), rate):
                if len(times) == MAX_FRAMES or (times and time >= max_seconds):
                    return Decoded(frames[: len(times)], np.asarray(times), rate, True)
                picture = _pixels(frame, aspect, reformatter)
                if not times:
                    # Memory that is not written to is not taken, and frames need not be copied together at the end.
                    frames = np.empty((MAX_FRAMES, *picture.shape), np.uint8)
                if picture.shape != frames.shape[1:]:
                    raise ValueError(
                        f"video {path}: expected frames of one size, got several; re-export it as mp4 (H.264)"
                    )
                frames[len(times)] = picture
                times.append(time)
    except (av.error.FFmpegError, OSError, MemoryError) as error:
        detail = f"one that breaks after {len(times)} frames" if times else "none"
        raise ValueError(
            f"video {path}: expected one that FFmpeg can read, got {detail} ({_one_line(error)}); re-export it as mp4"
        ) from None
    if not times:
        raise ValueError(f"video {path}: expected at least 2 frames, got 0; re-export it as mp4 (H.264)")
    return Decoded(frames[: len(times)], np.asarray(times), rate, False)


def _limits() -> dict[str, str]:
    """What FFmpeg is held to: for the file, and for the decoders with which it looks into the file."""
    return {"format_whitelist": CONTAINERS, "protocol_whitelist": "file", "max_pixels": str(MAX_PIXELS)}


def _video_stream(container: av.container.InputContainer, path: Path) -> av.VideoStream:
    stream = container.streams.best("video")  # not the cover picture beside it
    if stream is None or stream.codec_context is None:
        raise ValueError(f"video {path}: expected a video stream, got none; give an mp4, mov, webm or gif")
    width, height = stream.codec_context.width, stream.codec_context.height
    if not 0 < width * height <= MAX_PIXELS:
        # Where the limit keeps FFmpeg from looking into the file, no size is known.
        got = f"{width}x{height}; scale it down" if width * height else "no size that can be told; re-export it as mp4"
        raise ValueError(f"video {path}: expected frames of at most {MAX_PIXELS // 10**6} million pixels, got {got}")
    return stream


def _decoded(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    context = stream.codec_context
    library = LIBRARIES.get(context.name, "")
    if stream.metadata.get("alpha_mode") == "1" and library in av.codecs_available:
        context = av.CodecContext.create(library, "r")
    context.options = {"max_pixels": str(MAX_PIXELS)}  # of every frame, whatever the file says of itself
    for packet in container.demux(stream):
        yield from context.decode(packet)


def _timed(frames: Iterator[av.VideoFrame], rate: float) -> Iterator[tuple[av.VideoFrame, float]]:
    """Frames with their seconds after the first; where a stream has no usable times, an even rate stands in."""
    first, last = None, -np.inf
    for index, frame in enumerate(frames):
        time = index / rate if frame.time is None else float(frame.time)
        first = time if first is None else first
        last = time - first if time - first > last else last + 1 / rate
        yield frame, last


def _pixels(frame: av.VideoFrame, aspect: float, reformatter: VideoReformatter) -> UInt8[np.ndarray, "H W 3"]:
    shown = np.array([frame.width * aspect, frame.height])
    width, height = (max(1, round(side)) for side in shown * min(1.0, MAX_SIDE / shown.max()))
    has_alpha = any(component.is_alpha for component in frame.format.components) or frame.format.name == "pal8"
    image = reformatter.reformat(frame, width, height, "rgba" if has_alpha else "rgb24").to_ndarray()
    return _upright(_on_white(image) if has_alpha else image, frame)


def _upright(image: UInt8[np.ndarray, "h w 3"], frame: av.VideoFrame) -> UInt8[np.ndarray, "H W 3"]:
    """Turned and mirrored as the frame's display matrix says, by whole quarters of a turn."""
    try:
        matrix = frame.side_data["DISPLAYMATRIX"]  # pyright: ignore
        a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].astype(int)
    except (KeyError, ValueError):  # there is none, or beside it data of a kind that PyAV does not know
        return image
    # A pixel at (x, y) is shown at (a x + c y, b x + d y), but for an offset.
    if abs(b) + abs(c) > abs(a) + abs(d):
        image, a, d = image.swapaxes(0, 1), c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def decode_images(files: list[Path]) -> UInt8[np.ndarray, "T H W 3"]:
    """Pictures of one size, frames of a clip, turned as their EXIF says.

    Raises:
        ValueError: One that cannot be read, of another size than the first, or larger than 67 million pixels.
    """
    frames = np.empty((len(files), 0, 0, 3), np.uint8)
    for index, file in enumerate(files):
        picture = _image(file)
        if index == 0:
            frames = np.empty((len(files), *picture.shape), np.uint8)
        if picture.shape != frames.shape[1:]:
            raise ValueError(
                f"video {file.parent}: expected images of one size, got {frames.shape[2:0:-1]}, "
                f"and {picture.shape[1::-1]} for {file.name}"
            )
        frames[index] = picture
    return frames


def _image(file: Path) -> UInt8[np.ndarray, "H W 3"]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damage that does no harm, and of a size that is larger than our limit
            return _decoded_image(file)
    except Exception as error:  # what Pillow raises for damaged bytes is of a dozen kinds
        raise ValueError(
            f"video {file.parent}: expected readable images, got {file.name} ({_one_line(error)})"
        ) from None


def _decoded_image(file: Path) -> UInt8[np.ndarray, "H W 3"]:
    with Image.open(file, formats=IMAGE_FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width}x{image.height}, more than {MAX_PIXELS // 10**6} million pixels")
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16"):  # which Pillow would cut off at 255
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        upright = upright.convert("RGBA")
        upright.thumbnail((MAX_SIDE, MAX_SIDE))
        return _on_white(np.asarray(upright))


def _on_white(rgba: UInt8[np.ndarray, "H W 4"]) -> UInt8[np.ndarray, "H W 3"]:
    alpha = rgba[..., 3:].astype(np.float32) / 255
    return np.round(rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def _one_line(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split())[:120] or type(error).__name__
