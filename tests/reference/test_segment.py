"""Segmentation on clips whose masks are known, and on the real ones."""

import numpy as np
import pytest
from scipy import ndimage

from nil_jax.reference import read_video, segment_uniform, write_video
from nil_jax.reference.segment import crop, square_crop

ROWS, COLUMNS = np.mgrid[0:240, 0:240]


def walker(phase):
    """A body with a head and two thin legs with a gap between them."""
    body = (np.abs(COLUMNS - 120) < 14) & (ROWS > 60) & (ROWS < 140)
    head = np.hypot(COLUMNS - 124, ROWS - 46) < 12
    swing = 0.35 * np.sin(phase)
    legs = [
        (np.abs(COLUMNS - 120 - s * (ROWS - 135)) < 5) & (ROWS >= 135) & (ROWS < 205)
        for s in (swing + 0.1, -swing - 0.1)
    ]
    return body | head | legs[0] | legs[1]


def synthetic_clip(rng, *, background=(250, 248, 246), frames=6):
    """Frames with a brightness gradient, noise, a soft floor shadow, and an anti-aliased robot."""
    masks = np.stack([walker(0.6 * t) for t in range(frames)])
    clip = []
    for mask in masks:
        image = np.array(background, float) - 8.0 * (ROWS / 240)[..., None] - 5.0 * (COLUMNS / 240)[..., None]
        shadow = np.exp(-(((COLUMNS - 120) / 45) ** 2) - ((ROWS - 207) / 5) ** 2)
        image *= 1 - 0.18 * shadow[..., None]
        cover = ndimage.gaussian_filter(mask.astype(float), 0.5)[..., None]
        texture = 90 + 40 * np.sin(COLUMNS / 9.0)[..., None]
        image = image * (1 - cover) + texture * cover + rng.normal(0, 2.5, image.shape)
        clip.append(np.clip(image, 0, 255).astype(np.uint8))
    return np.stack(clip), masks


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize("background", [(250, 248, 246), (120, 170, 130)])
def test_noise_gradient_and_soft_shadow_are_not_the_robot(background):
    clip, masks = synthetic_clip(np.random.default_rng(0), background=background)
    if background[0] < 200:
        clip[masks] = 30  # the texture's greys are too near to this background to be told apart
    found = segment_uniform(clip)
    assert min(iou(a, b) for a, b in zip(found, masks, strict=True)) > 0.96
    assert iou(found, masks) > 0.97


def test_compression_does_not_change_the_mask_much(tmp_path):
    clip, masks = synthetic_clip(np.random.default_rng(1))
    write_video(tmp_path / "clip.mp4", clip, 30.0)
    assert iou(segment_uniform(read_video(tmp_path / "clip.mp4").frames), masks) > 0.95


def test_a_horizon_line_is_background():
    clip, masks = synthetic_clip(np.random.default_rng(2))
    with_line = clip.copy()
    with_line[:, 170:178] = np.where(masks[:, 170:178, :, None], clip[:, 170:178], 190)
    assert iou(segment_uniform(with_line), masks) > 0.95


def test_the_trunk_of_a_quadruped_is_no_horizon():
    trunk = (np.abs(ROWS - 110) < 12) & (np.abs(COLUMNS - 120) < 100)
    legs = (np.abs(np.abs(COLUMNS - 120) - 75) < 7) & (ROWS >= 110) & (ROWS < 180)
    frame = np.full((240, 240, 3), 252, np.uint8)
    frame[trunk | legs] = 70
    assert iou(segment_uniform(frame[None])[0], trunk | legs) > 0.98


def test_islands_go_and_the_gap_between_the_legs_stays():
    clip, _ = synthetic_clip(np.random.default_rng(3))
    clip[:, 20:24, 200:204] = 0  # a speck, far from the robot
    found = segment_uniform(clip)
    assert not found[:, 15:30, 195:210].any()
    between = (ROWS > 165) & (ROWS < 200) & (np.abs(COLUMNS - 120) < 4)
    assert not walker(0.6 * 2)[between].any()
    assert not found[2][between].any()


def test_clips_without_a_robot_are_refused():
    blank = np.full((4, 64, 64, 3), 250, np.uint8)
    with pytest.raises(ValueError, match="got none in the first frame"):
        segment_uniform(blank)
    late, _ = synthetic_clip(np.random.default_rng(4))
    late[1:] = 250
    with pytest.raises(ValueError, match="got none in 5 of 6 frames"):
        segment_uniform(late)
    with pytest.raises(ValueError, match="uniform background"):
        segment_uniform(np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8))


def test_the_crop_centres_the_robot_and_pads_outside_the_frame():
    masks = np.zeros((3, 100, 60), bool)
    masks[:, 10:95, 2:30] = True
    square = square_crop(masks, fill=0.85)
    assert square == (2, -34, 100)
    cut = crop(masks, square, False)
    assert cut.sum() == masks.sum()
    assert (crop(np.zeros((1, 100, 60, 3), np.uint8), square, 255)[0, :, :34] == 255).all()


CLIPS = {  # area of the masks as a part of the frame (median), measured on overlays that were looked at
    "h1_walk_kling": (0.045, 0.062),
    "h1_walk_sora": (0.075, 0.105),
    "h1_walk_svd": (0.038, 0.053),
    "a1_walk_kling": (0.060, 0.080),
    "talos_walk_kling": (0.100, 0.135),
}


@pytest.mark.parametrize("name", CLIPS)
def test_real_clips_give_plausible_masks(shared, name):
    frames = read_video(shared / "videos" / f"{name}.mp4").frames[::12]
    masks = segment_uniform(frames)
    areas, (low, high) = masks.mean((1, 2)), CLIPS[name]
    assert low < np.median(areas) < high
    assert areas.max() < 2 * areas.min()
    boxes = [ndimage.find_objects(mask.astype(int))[0] for mask in masks]
    sides = np.array([[part.stop - part.start for part in box] for box in boxes])
    assert (sides[:, 0] < sides[:, 1]).all() if name.startswith("a1") else (sides[:, 0] > sides[:, 1]).all()
    assert sides.max() < 384  # nothing of the padding, no horizon line from side to side
