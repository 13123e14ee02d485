"""Files that are damaged, or made to hurt: every one is read, or refused in one line, in little memory and time."""

import json
import os
import struct
import subprocess
import sys
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from nil_jax import cli
from nil_jax.reference import decode, read_video
from nil_jax.reference.decode import MAX_FRAMES

MEGABYTE = 2**20
SPARE = 3.0  # GB of address space beside what Python takes; of that, 1.6 are set aside for frames, and not taken
SECONDS = 20  # one file may take them; the machine may be busy, and the usual file takes hundredths
CODECS = {  # file: codec, pixel format, options
    "h264.mp4": ("libx264", "yuv420p", {}),
    "hevc.mp4": ("libx265", "yuv420p10le", {"x265-params": "log-level=none"}),
    "vp9.webm": ("libvpx-vp9", "yuv420p", {}),
    "alpha.webm": ("libvpx-vp9", "yuva420p", {}),
    "mpeg4.avi": ("mpeg4", "yuv420p", {}),
    "mjpeg.avi": ("mjpeg", "yuvj420p", {}),
    "ffv1.mkv": ("ffv1", "yuv420p10le", {}),
    "prores.mov": ("prores_ks", "yuva444p10le", {"profile": "4"}),
    "animated.png": ("apng", "rgba", {}),
    "h264.ts": ("libx264", "yuv420p", {}),
}
IMAGES = ("a.png", "a.jpg", "a.webp", "a.bmp")
# Reads every source that standard input names, one a line; what happens goes to a file, as nothing may be printed.
READER = """
import json, os, resource, signal, sys, traceback
from nil_jax.reference import read_video
results, spare, seconds = open(sys.argv[1], "w"), float(sys.argv[2]), int(sys.argv[3])
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(spare * 2**30),) * 2)
for name in sys.stdin.read().split():
    print(json.dumps({"name": name}), file=results, flush=True)
    signal.alarm(seconds)
    try:
        said = f"video of {len(read_video(name, fps=10.0 if os.path.isdir(name) else None).frames)} frames"
    except ValueError as error:
        ours = "nil_jax" in traceback.extract_tb(error.__traceback__)[-1].filename and "\\n" not in str(error)
        said = f"refused: {error}" if ours else f"not ours: {error!r}"
    except Exception as error:
        said = f"not ours: {error!r}"
    signal.alarm(0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"name": name, "said": said, "peak": peak}), file=results, flush=True)
"""


def square_clip(frames=6, height=48, width=64):
    """A noisy square that moves to the right over transparent white."""
    clip = np.full((frames, height, width, 4), (255, 255, 255, 0), np.uint8)
    noise = np.random.default_rng(0).integers(0, 255, (20, 20, 3))
    for t, frame in enumerate(clip):
        frame[10:30, 4 + 3 * t : 24 + 3 * t] = np.concatenate([noise, np.full((20, 20, 1), 255)], -1)
    return clip


def write_clip(path, clip, codec, pixel_format, options, rate=25):
    """Encodes frames `[T, H, W, 4]`."""
    with av.open(str(path), "w", format="apng" if path.suffix == ".png" else None) as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = clip.shape[1], clip.shape[2], pixel_format
        for frame in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgba")))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Bytes of small files of many kinds."""
    folder, clip = tmp_path_factory.mktemp("seeds"), square_clip()
    for name, (codec, pixel_format, options) in CODECS.items():
        write_clip(folder / name, clip, codec, pixel_format, options)
    first, *others = (Image.fromarray(frame) for frame in clip)
    first.save(folder / "a.gif", save_all=True, append_images=others, duration=40, disposal=2)
    for name in IMAGES:
        (first.convert("RGB") if name == "a.jpg" else first).save(folder / name)
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def mutated(seeds, name, rng):
    """The bytes of a seed, damaged in one of many ways, now and then in two."""
    data = bytearray(seeds[name])
    for _ in range(1 + (rng.random() < 0.3)):
        at, length = int(rng.integers(len(data))), int(rng.integers(1, 65))
        match rng.integers(8):
            case 0:
                for place in rng.integers(0, len(data), length):
                    data[place] ^= 1 << int(rng.integers(8))
            case 1:
                del data[max(at, 16) :]
            case 2:
                data[at : at + length] = rng.bytes(length)
            case 3:
                data[at : at + 4] = bytes.fromhex(["ffffffff", "7fffffff", "00000000", "80000000"][rng.integers(4)])
            case 4:
                other = seeds[sorted(seeds)[rng.integers(len(seeds))]]
                data[:length] = other[:length]
            case 5:
                other = seeds[sorted(seeds)[rng.integers(len(seeds))]]
                start = int(rng.integers(len(other)))
                data[at:at] = other[start : start + 16 * length]
            case 6:
                del data[at : at + length]
            case _:
                start = int(rng.integers(len(data)))
                data[at:at] = data[start : start + 16 * length]
        data = data or bytearray(1)
    return bytes(data)


def damaged_sources(seeds, folder, count):
    """That many files, and folders of two images of which one is damaged."""
    rng, sources = np.random.default_rng(count), []
    for index in range(count):
        name = sorted(seeds)[index % len(seeds)]
        source = folder / f"{index}_{name}"
        sources.append(source)
        if name in IMAGES:
            source.mkdir()
            (source / name).write_bytes(mutated(seeds, name, rng))
            (source / f"b{name}").write_bytes(seeds[name])
        else:
            source.write_bytes(mutated(seeds, name, rng))
    return sources


def read_all(sources, folder):
    """Reads sources in another process; what it says of each. A crash, a hang or a word of FFmpeg's fails the test."""
    command = [sys.executable, "-c", READER, str(folder / "said"), str(SPARE), str(SECONDS)]
    names = "\n".join(map(str, sources))
    done = subprocess.run(command, input=names, capture_output=True, text=True, timeout=120 + SECONDS + len(sources))
    said = [json.loads(line) for line in (folder / "said").read_text().splitlines()]
    assert done.returncode == 0, f"ended by {done.returncode} at {said[-1:]}: {done.stderr[-500:]}"
    assert (done.stdout, done.stderr) == ("", "")
    results = [line for line in said if "said" in line]
    assert [line["name"] for line in results] == [str(source) for source in sources]
    assert [line for line in results if line["said"].startswith("not ours")] == []
    return results


def test_damaged_files_are_read_or_refused(seeds, tmp_path):
    results = read_all(damaged_sources(seeds, tmp_path, 150), tmp_path)
    read = sum(line["said"].startswith("video") for line in results)
    assert 15 < read < 135  # else nothing was damaged, or everything beyond looking at


@pytest.mark.slow
def test_thousands_of_damaged_files_are_read_or_refused(seeds, tmp_path):
    read_all(damaged_sources(seeds, tmp_path, 20000), tmp_path)


def gif_of(width, height):
    """Two pictures of one pixel on a canvas of any size."""
    picture = b",\0\0\0\0\1\0\1\0\0\2\2D\1\0"
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0\xff\xff\xff\0\0\0" + 2 * picture + b";"


def png_of(width, height, like):
    """A PNG whose header alone is of that size; animated where the other one is."""
    header = b"IHDR" + struct.pack(">II", width, height) + like[24:29]
    return like[:12] + header + struct.pack(">I", zlib.crc32(header)) + like[33:]


def mjpeg_of(width, height, like):
    """Pictures that say another size than the file around them."""
    old = like[like.index(b"\xff\xc0\0\x11\x08") :][:9]
    return like.replace(old, old[:5] + struct.pack(">HH", height, width))


def bmp_of(width, height, like):
    """A BMP whose header alone is of that size."""
    return like[:18] + struct.pack("<ii", width, height) + like[26:]


SIZES = ((65535, 65535), (30000, 30000), (16000, 16000), (65500, 1100))


def huge_sources(seeds, folder):
    """Files and folders of images whose headers name many more pixels than there are."""
    sources = []
    for width, height in SIZES:
        files = {
            f"{width}.gif": gif_of(width, height),
            f"{width}.apng": png_of(width, height, seeds["animated.png"]),
            f"{width}.avi": mjpeg_of(width, height, seeds["mjpeg.avi"]),
            f"{width}_png/a.png": png_of(width, height, seeds["a.png"]),
            f"{width}_bmp/a.bmp": bmp_of(width, height, seeds["a.bmp"]),
        }
        for name, data in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
            sources.append(folder / Path(name).parts[0])
    return sources


@pytest.fixture(scope="module")
def said_of(seeds, tmp_path_factory):
    """What is said of a small clip, of sources that pretend to be others, and of a large clip, in this order."""
    folder = tmp_path_factory.mktemp("said")
    (folder / "clip.mp4").write_bytes(seeds["h264.mp4"])
    (folder / "list.mp4").write_text("ffconcat version 1.0\nfile clip.mp4\n")
    (folder / "list.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nclip.mp4\n#EXT-X-ENDLIST\n")
    (folder / "text.mp4").write_text("a clip\n" * 1000)
    os.mkfifo(folder / "pipe.mp4")  # opening it would wait for ever
    large = np.broadcast_to(np.uint8(0), (30, 2160, 3840, 4))
    write_clip(folder / "4k.mp4", large, "libx264", "yuv420p", {"preset": "ultrafast"})
    others = [folder / name for name in ("list.mp4", "list.m3u8", "text.mp4", "pipe.mp4", "4k.mp4")]
    results = read_all([folder / "clip.mp4", *huge_sources(seeds, folder), *others], folder)
    peaks = [line["peak"] for line in results]
    grown = [0, *np.diff(peaks) / MEGABYTE]  # MB by which each source raised the peak
    return {Path(line["name"]).name: (line["said"], more) for line, more in zip(results, grown, strict=True)}


def test_files_that_say_they_are_huge_are_refused_in_little_memory(said_of):
    assert said_of["clip.mp4"][0] == "video of 6 frames"
    for width, _ in SIZES:
        for kind in (".gif", ".apng", ".avi", "_png", "_bmp"):
            said, grown = said_of[f"{width}{kind}"]
            assert said.startswith("refused") and grown < 64
            # FFmpeg calls the largest APNG invalid, and pictures that are larger than the AVI around them.
            assert "pixels" in said or kind in (".apng", ".avi")


def test_a_4k_clip_takes_the_memory_of_what_is_returned(said_of):
    said, grown = said_of["4k.mp4"]
    assert said == "video of 30 frames"
    # 30 frames are 30 MB scaled down and 750 MB as they are; FFmpeg keeps some of 12 MB each.
    assert grown < 400


def test_neither_playlists_nor_things_that_are_no_files_are_opened(said_of):
    for name in ("list.mp4", "list.m3u8", "text.mp4"):
        assert "expected one that FFmpeg can read" in said_of[name][0]
    assert "another thing there" in said_of["pipe.mp4"][0]


def test_hours_are_not_decoded_but_for_the_first_half_minute(tmp_path, monkeypatch):
    path, clip = tmp_path / "long.mkv", square_clip(10)
    for rate, count in ((Fraction(1, 4), 8), (25, 750)):  # two hours, and the rest within half a minute
        write_clip(path, np.tile(clip, (200, 1, 1, 1)), "ffv1", "bgra", {}, rate)
        data = path.read_bytes()
        path.write_bytes(data[: int(0.6 * len(data))] + np.random.default_rng(0).bytes(int(0.4 * len(data))))
        video = read_video(path)
        assert (len(video.frames), video.shortened) == (count, True)
    assert len(read_video(path, max_seconds=60.0).frames) == MAX_FRAMES
    monkeypatch.setattr(decode, "MAX_FRAMES", 2000)
    with pytest.raises(ValueError, match=r"breaks after 1[0-9]{3} frames"):
        read_video(path, max_seconds=80.0)


def boxes(*columns, frames=6):
    """A clip `[T, H, W, 4]` of dark boxes in these columns, on white."""
    clip = np.full((frames, 96, 128, 4), 255, np.uint8)
    for left, right in columns:
        clip[:, 20:80, left:right, :3] = 40
    return clip


BAD_CLIPS = {  # what makes it, from a path and the seeds; what the refusal says
    "one frame": (lambda path, seeds: write_clip(path, boxes((50, 70), frames=1), "ffv1", "bgra", {}), "got 1; give"),
    "no robot": (lambda path, seeds: write_clip(path, boxes(), "ffv1", "bgra", {}), "got none in the first frame"),
    "two robots": (lambda path, seeds: write_clip(path, boxes((20, 40), (60, 80)), "ffv1", "bgra", {}), "got several"),
    "cut": (lambda path, seeds: write_clip(path, boxes((0, 30)), "ffv1", "bgra", {}), "cut at the left in 6 of 6"),
    "truncated": (lambda path, seeds: path.write_bytes(seeds["h264.mp4"][:1000]), "expected one that FFmpeg can read"),
    "no video": (lambda path, seeds: path.write_text("a clip"), "expected one that FFmpeg can read"),
    "huge": (lambda path, seeds: path.write_bytes(gif_of(30000, 30000)), "at most 67 million pixels"),
    "empty folder": (lambda path, seeds: path.mkdir(), "--source-fps 30"),
}


@pytest.mark.parametrize("kind", BAD_CLIPS)
def test_prepare_refuses_each_bad_clip_in_one_line(kind, seeds, tmp_path, tiny_path, capsys):
    make, message = BAD_CLIPS[kind]
    make(tmp_path / "clip.mkv", seeds)
    with pytest.raises(SystemExit) as stop:
        cli.main(["prepare", str(tiny_path), str(tmp_path / "clip.mkv"), "-o", str(tmp_path / "a.ref")])
    said = capsys.readouterr()
    assert (stop.value.code, said.out, len(said.err.splitlines())) == (2, "", 1)
    assert said.err.startswith("nil-jax: ") and message in said.err
    assert not (tmp_path / "a.ref").exists()


def test_prepare_is_told_the_rate_of_a_folder(tmp_path, tiny_path, capsys):
    for index in range(3):
        Image.new("L", (32, 32), 255).save(tmp_path / f"{index}.png")
    command = ["prepare", str(tiny_path), str(tmp_path), "-o", str(tmp_path / "a.ref"), "--source-fps"]
    for rate, message in (
        ("25", "got none in the first frame"),
        ("0", "fps: expected a rate"),
        ("nan", "fps: expected"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main([*command, rate])
        assert stop.value.code == 2 and message in capsys.readouterr().err
