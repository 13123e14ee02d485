"""Reading, writing and resampling of videos, against files that PyAV and Pillow write here."""

from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from nil_jax.reference import read_video, write_video
from nil_jax.reference.decode import MAX_SIDE
from nil_jax.reference.video import interpolate_masks, nearest, tick_times

CODEC_ERROR = 6.0  # mean levels; H.264 at crf 18 with halved colour resolution stays near 2 on smooth pictures


def moving_square(frames=12, height=48, width=64):
    """A dark square that moves two pixels a frame over white."""
    clip = np.full((frames, height, width, 3), 255, np.uint8)
    for t, frame in enumerate(clip):
        frame[16:32, 4 + 2 * t : 20 + 2 * t] = (40, 60, 80)
    return clip


def write_with_times(path, clip, ticks):
    """An mp4 whose frame i is shown from ticks[i] milliseconds on."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1000, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = clip.shape[2], clip.shape[1], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for frame, tick in zip(clip, ticks, strict=True):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = tick, Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def test_an_mp4_comes_back_with_its_rate_and_pixels(tmp_path):
    clip = moving_square()
    write_video(tmp_path / "a.mp4", clip, 30.0)
    video = read_video(tmp_path / "a.mp4")
    assert video.frames.shape == clip.shape
    assert video.fps == pytest.approx(30.0, rel=1e-3)
    assert np.abs(video.frames.astype(int) - clip).mean() < CODEC_ERROR
    assert (video.name, len(video.sha256), video.shortened) == ("a.mp4", 64, False)


def test_odd_sizes_are_padded_to_even_ones(tmp_path):
    write_video(tmp_path / "odd.mp4", moving_square(height=47, width=63), 25.0)
    assert read_video(tmp_path / "odd.mp4").frames.shape[1:3] == (48, 64)


def test_a_gif_comes_back_on_white(tmp_path):
    images = []
    for frame in moving_square():
        image = Image.fromarray(np.concatenate([frame, (frame[..., :1] < 255) * np.uint8(255)], -1))
        images.append(image)
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=50, loop=0, disposal=2)
    video = read_video(tmp_path / "a.gif")
    assert len(video.frames) == 12
    assert video.fps == pytest.approx(20.0, rel=1e-3)
    assert np.abs(video.frames.astype(int) - moving_square()).mean() < CODEC_ERROR  # a gif has 256 colours


def test_a_folder_of_transparent_images_is_laid_on_white(tmp_path):
    for t, frame in enumerate(moving_square()):
        alpha = np.where(frame[..., :1] < 255, 255, 0).astype(np.uint8)
        Image.fromarray(np.concatenate([np.where(alpha, frame, 0).astype(np.uint8), alpha], -1)).save(
            tmp_path / f"{t:03d}.png"
        )
    np.testing.assert_array_equal(read_video(tmp_path, fps=12.0).frames, moving_square())


def test_uneven_frame_times_become_even(tmp_path):
    ticks = [0, 40, 80, 120, 160, 200, 280, 320, 360, 400, 440, 480]  # one frame stays twice as long
    write_with_times(tmp_path / "vfr.mp4", moving_square(), ticks)
    video = read_video(tmp_path / "vfr.mp4")
    assert len(video.frames) == 13
    assert video.fps == pytest.approx(25.0, rel=1e-2)
    np.testing.assert_array_equal(video.frames[6], video.frames[5])


def test_large_and_long_clips_are_bounded(tmp_path):
    large = np.zeros((4, 100, 2 * MAX_SIDE, 3), np.uint8)
    write_video(tmp_path / "large.mp4", large, 10.0)
    video = read_video(tmp_path / "large.mp4", max_seconds=0.25)
    assert max(video.frames.shape[1:3]) == MAX_SIDE
    assert (len(video.frames), video.shortened) == (3, True)


@pytest.mark.parametrize("rate", [30.0, Fraction(30_000, 1001), Fraction(24_000, 1001)])
def test_a_folder_holds_as_many_frames_of_half_a_minute_as_a_file(tmp_path, rate):
    frames = np.zeros((910, 16, 16, 3), np.uint8)
    write_video(tmp_path / "long.mp4", frames, float(rate))
    video = read_video(tmp_path / "long.mp4")
    assert video.shortened and len(read_video(frames, fps=video.fps).frames) == len(video.frames)


def test_bad_sources_get_one_clear_line(tmp_path):
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(4000))
    (tmp_path / "empty").mkdir()
    write_video(tmp_path / "one.mp4", moving_square(1), 25.0)
    write_video(tmp_path / "whole.mp4", moving_square(), 25.0)
    (tmp_path / "half.mp4").write_bytes((tmp_path / "whole.mp4").read_bytes()[:1200])
    cases = {
        "nothing there": {"source": tmp_path / "missing.mp4"},
        "expected one that FFmpeg can read": {"source": tmp_path / "noise.mp4"},
        "expected (one that FFmpeg can read|a video stream)": {"source": tmp_path / "half.mp4"},
        "at least 2 frames, got 1": {"source": tmp_path / "one.mp4"},
        "expected images": {"source": tmp_path / "empty", "fps": 10.0},
        "fps: expected frames per second with the folder": {"source": tmp_path / "empty"},
        "fps: expected frames per second with an array": {"source": moving_square()},
        r"expected shape \[T, H, W, 3\]": {"source": np.zeros((4, 32, 32), np.uint8), "fps": 10.0},
    }
    for message, arguments in cases.items():
        with pytest.raises(ValueError, match=message) as error:
            read_video(**arguments)
        assert "\n" not in str(error.value)
    with pytest.raises(TypeError, match="expected uint8"):
        read_video(np.zeros((4, 32, 32, 3)), fps=10.0)


def test_ticks_agree_with_a_loop_over_time():
    for frames, rate, fps, speed in [
        (10, 30.0, 25.0, 1.0),
        (153, 30.0, 25.0, 1.0),
        (31, 30.0, 50.0, 2.0),
        (5, 8.0, 24.0, 0.5),
    ]:
        expected, time = [], 0.0
        while time * speed * rate <= frames - 1 + 1e-6:
            expected.append(time * speed * rate)
            time += 1 / fps
        np.testing.assert_allclose(tick_times(frames, rate, fps, speed=speed), expected, atol=1e-6)


def test_a_loop_holds_a_whole_number_of_ticks():
    times = tick_times(31, 30.0, 25.0, loop=True)  # 25.83 ticks
    assert len(times) == 26
    np.testing.assert_allclose(np.diff([*times, 31.0]), 31 / 26)


def test_the_nearest_frame_agrees_with_a_search_over_all():
    rng = np.random.default_rng(0)
    times, wanted = np.sort(rng.uniform(0, 5, 40)), rng.uniform(-1, 6, 100)
    expected = [int(np.argmin(np.abs(times - w))) for w in wanted]
    np.testing.assert_array_equal(nearest(times, wanted), expected)


def disc(x, size=96, radius=14.0):
    rows, columns = np.mgrid[0:size, 0:size]
    return np.hypot(rows - 48.0, columns - x) < radius


def test_interpolated_masks_follow_a_moving_disc():
    masks = np.stack([disc(x) for x in (30.0, 38.0, 46.0)])
    times = np.array([0.0, 0.25, 0.5, 1.0, 1.7, 2.0])
    exact = np.stack([disc(30.0 + 8.0 * t) for t in times])
    result = interpolate_masks(masks, times)
    iou = (result & exact).sum((1, 2)) / (result | exact).sum((1, 2))
    assert iou.min() > 0.93  # an outline of 88 pixels round 616: half a pixel off would be 0.93
    np.testing.assert_array_equal(result[[0, 3, 5]], masks)


def test_a_looping_mask_is_interpolated_from_last_to_first():
    masks = np.stack([disc(30.0), disc(38.0)])
    halfway = interpolate_masks(masks, np.array([1.5]), loop=True)[0]
    exact = disc(34.0)
    assert (halfway & exact).sum() / (halfway | exact).sum() > 0.93
    np.testing.assert_array_equal(interpolate_masks(masks, np.array([1.5]))[0], masks[1])
