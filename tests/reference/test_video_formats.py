"""Clips as people have them: depth, range and matrix of colours, transparency, orientation, odd sizes, odd names."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from nil_jax.reference import Video, read_video

ROUNDING = 3.0  # levels; what FFmpeg's fixed-point conversions, dithered where depth falls, stay below
SOFT = 6.0  # levels, in the middle of flat patches: what is left of them by codecs that are not lossless
LOSSLESS = {"libx264": {"qp": "0"}, "libx265": {"x265-params": "lossless=1:log-level=none"}, "ffv1": {}}
WEIGHTS = {"601": (0.299, 0.114), "709": (0.2126, 0.0722)}  # of red and blue in luma
PATCHES = np.array([[16, 235], [81, 145]]), np.array([[128, 128], [90, 54]]), np.array([[128, 128], [200, 90]])  # Y U V


def patches(values, height=48, width=64):
    """A picture of two by two flat patches."""
    return np.kron(values, np.ones((height // 2, width // 2), int)).astype(np.uint16)


def rgb_of(matrix, full):
    """Red, green and blue of the patches `[2, 2, 3]`, by the equations of the standard."""
    red, blue = WEIGHTS[matrix]
    y, u, v = (plane.astype(float) for plane in PATCHES)
    y, u, v = (y, u - 128, v - 128) if full else ((y - 16) * 255 / 219, (u - 128) * 255 / 224, (v - 128) * 255 / 224)
    r, b = y + 2 * (1 - red) * v, y + 2 * (1 - blue) * u
    return np.clip(np.stack([r, (y - red * r - blue * b) / (1 - red - blue), b], -1), 0, 255)


def write_planes(path, codec, pixel_format, *, full=False, matrix="601", frames=4):
    """A clip whose every frame holds the patches, in 8 or 10 bits, without loss."""
    deep = "10le" in pixel_format
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=LOSSLESS[codec])
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixel_format
        stream.codec_context.color_range = 2 if full else 1
        stream.codec_context.colorspace = {"601": 6, "709": 1}[matrix]
        for _ in range(frames):
            frame = av.VideoFrame(64, 48, pixel_format)
            for plane, values in zip(frame.planes, PATCHES, strict=True):
                picture = patches(values, plane.height, plane.width) << (2 if deep else 0)
                rows = np.zeros((plane.height, plane.line_size // (2 if deep else 1)), np.uint16 if deep else np.uint8)
                rows[:, : plane.width] = picture
                plane.update(rows.tobytes())
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def patch_colours(frame):
    """What stands in the middles of the four patches `[2, 2, 3]`."""
    height, width = frame.shape[:2]
    return frame[height // 4 :: height // 2, width // 4 :: width // 2].astype(float)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", ["601", "709"])
@pytest.mark.parametrize(
    ("name", "codec", "pixel_format"),
    [
        ("a.mp4", "libx264", "yuv420p"),
        ("a.mp4", "libx264", "yuv420p10le"),
        ("a.mov", "libx265", "yuv420p10le"),
        ("a.mkv", "ffv1", "yuv444p10le"),
    ],
)
def test_colours_are_those_of_the_standard(tmp_path, name, codec, pixel_format, matrix, full):
    write_planes(tmp_path / name, codec, pixel_format, full=full, matrix=matrix)
    video = read_video(tmp_path / name)
    assert len(video.frames) == 4
    for frame in video.frames:
        np.testing.assert_allclose(patch_colours(frame), rgb_of(matrix, full), atol=ROUNDING)


COLOURS = np.array([[(200, 30, 30), (30, 160, 60)], [(40, 60, 200), (255, 255, 255)]], np.uint8)


def coloured(frames=4, height=48, width=64):
    """A clip of four flat patches, no two of which are alike."""
    picture = COLOURS.repeat(height // 2, 0).repeat(width // 2, 1)
    return np.stack([picture] * frames)


def write_rgba(path, clip, codec, pixel_format, options):
    """Encodes frames `[T, H, W, 4]`."""
    with av.open(str(path), "w", format="apng" if path.suffix == ".png" else None) as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = clip.shape[1], clip.shape[2], pixel_format
        for frame in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgba")))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format", "options"),
    [
        ("a.webm", "libvpx-vp9", "yuva420p", {"crf": "4", "b": "0"}),
        ("a.mov", "prores_ks", "yuva444p10le", {"profile": "4"}),
        ("b.mov", "qtrle", "argb", {}),
        ("a.png", "apng", "rgba", {}),
        ("a.mkv", "ffv1", "bgra", {}),
    ],
)
def test_transparent_pixels_become_white(tmp_path, name, codec, pixel_format, options):
    clip = np.concatenate([coloured(), np.full((4, 48, 64, 1), 255, np.uint8)], -1)
    clip[:, :24, :32] = 0  # black, and not to be seen
    write_rgba(tmp_path / name, clip, codec, pixel_format, options)
    expected = COLOURS.astype(float)
    expected[0, 0] = 255
    for frame in read_video(tmp_path / name).frames:
        np.testing.assert_allclose(patch_colours(frame), expected, atol=SOFT)


TURNS = {  # a b c d: the pixel at (x, y) is shown at (a x + c y, b x + d y), y down
    "as it is": (1, 0, 0, 1),
    "clockwise": (0, 1, -1, 0),
    "upside down": (-1, 0, 0, -1),
    "counterclockwise": (0, -1, 1, 0),
    "mirrored": (-1, 0, 0, 1),
    "mirrored and clockwise": (0, 1, 1, 0),
}


def turned(picture, a, b, c, d):
    """The picture as the matrix says, pixel by pixel."""
    rows, columns = np.mgrid[: picture.shape[0], : picture.shape[1]]
    x, y = a * columns + c * rows, b * columns + d * rows
    x, y = x - x.min(), y - y.min()
    result = np.zeros((y.max() + 1, x.max() + 1, 3), picture.dtype)
    result[y, x] = picture
    return result


def set_matrix(path, a, b, c, d):
    """Writes the display matrix into the track's header of an mp4, as a phone does."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # behind version, times, track, duration, layer and volume
    assert struct.unpack_from(">9i", data, at) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", data, at, a << 16, b << 16, 0, c << 16, d << 16, 0, 48 << 16, 0, 1 << 30)
    path.write_bytes(data)


@pytest.mark.parametrize("matrix", TURNS.values(), ids=TURNS)
def test_a_clip_is_turned_as_its_header_says(tmp_path, matrix):
    path, clip = tmp_path / "phone.mp4", np.concatenate([coloured(), np.full((4, 48, 64, 1), 255, np.uint8)], -1)
    write_rgba(path, clip, "libx264", "yuv420p", {"qp": "0"})
    stored = read_video(path).frames
    set_matrix(path, *matrix)
    np.testing.assert_array_equal(read_video(path).frames, [turned(frame, *matrix) for frame in stored])


@pytest.mark.parametrize(("aspect", "width"), [(Fraction(16, 9), 114), (Fraction(1, 2), 32), (Fraction(1), 64)])
def test_pixels_that_are_not_square_are_shown_as_wide_as_they_are(tmp_path, aspect, width):
    path = tmp_path / "wide.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = aspect
        for picture in coloured():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture[..., :3])))
        container.mux(stream.encode(None))
    assert read_video(path).frames.shape[1:3] == (48, width)


def test_images_are_turned_as_their_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be seen upright, turn it clockwise
    for name in ("0.png", "1.png"):
        Image.fromarray(coloured()[0]).save(tmp_path / name, exif=exif)
    expected = turned(coloured()[0], *TURNS["clockwise"])
    np.testing.assert_array_equal(read_video(tmp_path, fps=10.0).frames, [expected, expected])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"])
def test_images_of_every_kind_are_read(tmp_path, mode):
    grey = np.full((20, 24), 0 if mode == "1" else 100, np.uint8)
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    for name in ("0", "1"):
        image.save(tmp_path / f"{name}.jpg" if mode == "CMYK" else tmp_path / f"{name}.png")
    frames = read_video(tmp_path, fps=10.0).frames
    np.testing.assert_allclose(frames, np.broadcast_to(grey[..., None], (2, 20, 24, 3)), atol=2)  # JPEG rounds


@pytest.mark.parametrize(("height", "width"), [(47, 63), (33, 50), (48, 17)])
def test_odd_sizes_stay_as_they_are(tmp_path, height, width):
    rng = np.random.default_rng(0)
    clip = np.concatenate(
        [rng.integers(0, 256, (3, height, width, 3), np.uint8), np.full((3, height, width, 1), 255, np.uint8)], -1
    )
    write_rgba(tmp_path / "odd.mkv", clip, "ffv1", "bgra", {})
    np.testing.assert_array_equal(read_video(tmp_path / "odd.mkv").frames, clip[..., :3])


def test_a_name_is_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clip = np.concatenate([coloured(), np.full((4, 48, 64, 1), 255, np.uint8)], -1)
    write_rgba(tmp_path / "a.mkv", clip, "ffv1", "bgra", {})
    for name in ("http:a.mkv", "%03d.mkv", "walk & run?.mkv", "läuft.mkv", "-i.mkv"):
        Path(name).write_bytes(Path("a.mkv").read_bytes())
        np.testing.assert_array_equal(read_video(name).frames, clip[..., :3])


def test_bursts_do_not_shorten_an_uneven_clip(tmp_path):
    ticks = [t for second in range(10) for t in range(1000 * second, 1000 * second + 20, 2)]  # ten frames in 20 ms
    with av.open(str(tmp_path / "bursts.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=1000)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "bgra"
        for level, tick in enumerate(ticks):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), level, np.uint8), format="rgb24")
            frame.pts = tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    video: Video = read_video(tmp_path / "bursts.mkv")
    times = np.arange(len(video.frames)) / video.fps
    expected = [int(np.argmin(np.abs(np.array(ticks) / 1000 - time))) for time in times]
    assert times[-1] == pytest.approx(ticks[-1] / 1000, rel=1e-3)
    assert np.abs(video.frames[:, 0, 0, 0].astype(int) - expected).max() <= 1  # halves may go either way
