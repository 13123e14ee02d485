"""Masks of whole clips: gaps, confidence, and masks that the user gives."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nil_jax import cli
from nil_jax.reference import (
    Alignment,
    ReferenceConfig,
    Video,
    clip_masks,
    prepare,
    prepare_reference,
    read_masks,
    read_video,
    write_video,
)
from nil_jax.reference.clip_masks import agreement, bridge_gaps, find_masks
from nil_jax.reference.segment_sam2 import Sam2
from nil_jax.rendering import side_camera


def box_mask(top, left, bottom, right):
    mask = np.zeros((48, 80), bool)
    mask[top:bottom, left:right] = True
    return mask


def refused(message, function, *args, error=ValueError, **kwargs):
    """Asserts that the call is refused in one line that holds the message."""
    with pytest.raises(error, match=message) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)


def moving_box(frames=16, step=3):
    """A box that moves to the right."""
    return np.stack([box_mask(10, 5 + step * t, 30, 15 + step * t) for t in range(frames)])


def test_short_gaps_are_filled_with_what_moves_on():
    whole = moving_box()
    lost = whole.copy()
    lost[4:6] = False
    lost[6, 14:] = False  # a fifth of the box is left
    lost[12] = False
    found, filled = bridge_gaps(lost)
    np.testing.assert_array_equal(np.flatnonzero(filled), [4, 5, 6, 12])
    np.testing.assert_array_equal(found, whole)  # the box keeps its shape, so its way is the truth


def test_long_gaps_and_those_at_an_end_stay():
    lost = moving_box()
    lost[2:8] = False  # six frames
    lost[-2:] = False
    found, filled = bridge_gaps(lost)
    assert not filled.any()
    np.testing.assert_array_equal(found, lost)


def test_a_robot_that_slowly_shrinks_is_no_gap():
    masks = np.stack([box_mask(0, 0, 48 - t, 80 - t) for t in range(40)])
    assert not bridge_gaps(masks)[1].any()


def test_confidence_is_the_agreement_with_the_better_neighbour():
    masks = moving_box()
    np.testing.assert_array_equal(agreement(masks), np.ones(16))  # moving costs nothing
    masks[7, 20:] = False  # half of it, not a gap
    expected = np.ones(16)
    # Centred, ten rows lie over the middle ten of twenty; reach is a twentieth of the height, one row on either side.
    expected[7] = 12 / 20
    np.testing.assert_array_equal(agreement(masks), expected)
    masks[7] = False
    expected[7] = 0.0
    np.testing.assert_array_equal(agreement(masks), expected)


def test_a_swinging_leg_costs_no_confidence_and_a_stray_piece_does():
    masks = np.stack([box_mask(4, 30, 24, 40) | box_mask(24, 30 + t % 2, 44, 34 + t % 2) for t in range(8)])
    np.testing.assert_array_equal(agreement(masks), np.ones(8))
    masks[3] |= box_mask(4, 60, 44, 80)
    found = agreement(masks)
    assert found[3] < 0.6 and (np.delete(found, 3) == 1).all()


def test_given_masks_replace_the_segmenter(tiny_env, monkeypatch):
    fit = Alignment(side_camera(2.0, 0.4), np.array(tiny_env.start_qpos, np.float32), 1.0)
    monkeypatch.setattr(prepare, "fit_start", lambda env, mask, progress: fit)
    masks = np.stack([box_mask(8, 16 + t, 40, 32 + t) for t in range(8)])
    noise = np.random.default_rng(0).integers(0, 200, (8, 48, 80, 3), np.uint8)
    lost = masks.copy()
    lost[3] = False
    settings = {"source_fps": 25.0, "mask_size": 48, "frame_size": 48}
    reference = prepare_reference(tiny_env, noise, masks=lost, **settings)
    drawn = np.where(masks[..., None], 0, 255).astype(np.uint8).repeat(3, -1)
    plain = prepare_reference(tiny_env, drawn, **settings)  # finds the same masks by itself
    np.testing.assert_array_equal(reference.masks, plain.masks)
    assert (reference.frames[~(plain.frames < 255).any(-1)] == 255).all() and reference.frames.min() < 200
    made = reference.provenance
    assert made["segmentation"] == "given" and len(made["masks_sha256"]) == 64
    assert plain.provenance["segmentation"] == "uniform"
    assert made["segmentation_confidence"] == {
        "mean": pytest.approx(7 / 8, abs=1e-4),
        "worst": 0.0,
        "worst_frame": 3,
        "filled_frames": 1,
    }


def test_masks_are_read_from_pictures_and_videos(tmp_path):
    masks = moving_box(6)
    video = Video(np.zeros((6, 48, 80, 3), np.uint8), 24.0)
    for index, mask in enumerate(masks):
        Image.fromarray(mask).save(tmp_path / f"{index:03}.png")
    np.testing.assert_array_equal(read_masks(tmp_path, video), masks)
    write_video(tmp_path / "masks.mp4", np.where(masks[..., None], 255, 0).astype(np.uint8).repeat(3, -1), 24.0)
    coded = read_masks(tmp_path / "masks.mp4", video)
    assert (coded & masks).sum() / (coded | masks).sum() > 0.98  # H.264 blurs outlines
    for shape, got in (((7, 48, 80, 3), "6 x 48 x 80"), ((6, 64, 80, 3), "6 x 48 x 80")):
        refused(f"masks: expected .* got {got}", read_masks, tmp_path, Video(np.zeros(shape, np.uint8), 24.0))


def test_masks_that_do_not_fit_are_refused(tiny_env):
    video = Video(np.zeros((6, 48, 80, 3), np.uint8), 24.0)

    def find(masks):
        return find_masks(tiny_env, video, "uniform", "", masks)

    masks = moving_box(6)
    refused("masks: expected as many frames .*6 x 48 x 80, got 5 x 48 x 80", find, masks[1:])
    refused("masks: expected bool", clip_masks._expect_like, masks.astype(np.uint8), video, error=TypeError)
    late, rare = masks.copy(), masks.copy()
    late[0], rare[2:] = False, False
    refused("got none in the first frame", find, late)
    refused("got none in 4 of 6 frames", find, rare)
    refused("segmenter: expected one of uniform, sam2, got 'sam'", ReferenceConfig, segmenter="sam")


def drawn(masks):
    """The clip that shows masks in black on white."""
    return Video(np.where(masks[..., None], 0, 255).astype(np.uint8).repeat(3, -1), 24.0)


def found_in(masks, given=None):
    """What `find_masks` makes of a clip that shows them, on a plain background."""
    return find_masks(None, drawn(masks), "uniform", "", given).masks


EDGES = {"top": (0, 30, 24, 44), "bottom": (20, 30, 48, 44), "left": (12, 0, 36, 14), "right": (12, 66, 36, 80)}


@pytest.mark.parametrize("edge", EDGES)
def test_a_robot_cut_by_the_frame_is_refused(edge):
    whole = np.stack([box_mask(10, 30, 40, 44)] * 20)
    for frames in ([0], [3, 4, 5]):  # the first, or more than a tenth
        cut = whole.copy()
        cut[frames] = box_mask(*EDGES[edge])
        message = rf"whole robot in the frame, got one cut at the {edge} in {len(frames)} of 20 frames; trim"
        refused(message, found_in, cut)
        refused(message, found_in, whole, cut)  # masks that the user gives are looked at too


def test_a_robot_that_reaches_the_edge_now_and_then_or_in_a_point_is_whole():
    whole = np.stack([box_mask(10, 30, 40, 44)] * 20)
    seldom, point = whole.copy(), whole.copy()
    seldom[[3, 9]] = box_mask(10, 30, 48, 44)
    point |= box_mask(40, 36, 48, 38)  # two pixels of the bottom row
    for masks in (whole, seldom, point):
        np.testing.assert_array_equal(found_in(masks), masks)


def test_several_things_side_by_side_are_refused_unless_masks_choose():
    one = np.stack([box_mask(8, 8 + t, 40, 20 + t) for t in range(8)])
    two = one | box_mask(14, 50, 34, 60)  # of half the area
    refused(r"one robot, got several things side by side in 8 of 8 frames; .*--segmenter sam2.*--masks", found_in, two)
    np.testing.assert_array_equal(found_in(two, one), one)
    half = one.copy()
    half[4:] = two[4:]
    np.testing.assert_array_equal(found_in(half), half)  # for half of the clip: the verdict's business


def test_several_things_are_left_to_sam2(monkeypatch):
    one = np.stack([box_mask(8, 8 + t, 40, 20 + t) for t in range(8)])
    model = Sam2(None, {"sha256": "0"})
    monkeypatch.setattr(clip_masks, "load_sam2", lambda folder: model)
    monkeypatch.setattr(clip_masks, "start_prompt", lambda env, frame: one[0])
    monkeypatch.setattr(clip_masks, "segment_sam2", lambda frames, prompt, sam2, progress: (one, np.ones(8)))
    clip = drawn(one | box_mask(14, 50, 34, 60))
    np.testing.assert_array_equal(find_masks(None, clip, "sam2", "").masks, one)


def test_a_robot_in_pieces_is_one_robot():
    trunk, legs = box_mask(6, 20, 20, 50), box_mask(24, 22, 42, 30) | box_mask(24, 40, 42, 48)
    crumb = box_mask(10, 60, 16, 66)
    masks = np.stack([trunk | legs | crumb] * 6)
    np.testing.assert_array_equal(found_in(masks), masks)


@pytest.mark.parametrize(
    "name", ["h1_walk_kling", "h1_walk_sora", "h1_walk_svd", "a1_walk_kling", "talos_walk_kling", "demo"]
)
def test_real_clips_show_one_whole_robot(name, request):
    if name == "demo":
        path = Path(__file__).parents[2] / "examples" / "a1_prowl.mp4"
    else:
        path = request.getfixturevalue("shared") / "videos" / f"{name}.mp4"
    video = read_video(path)
    seen = find_masks(None, Video(video.frames[::6], video.fps / 6), "uniform", "")
    assert seen.masks.any((1, 2)).all()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--masks", "{tmp}/none"], "nothing there"),
        (["--masks", "{tmp}/masks.mp4"], "got 4 x 48 x 80"),
        (["--segmenter", "sam2", "--segmenter-model", "{tmp}"], "segmenter_model: expected a complete"),
    ],
)
def test_the_command_line_says_what_is_wrong(argv, message, tmp_path, tiny_path, capsys):
    clip = np.zeros((6, 48, 80, 3), np.uint8)
    write_video(tmp_path / "clip.mp4", clip, 24.0)
    write_video(tmp_path / "masks.mp4", clip[:4], 24.0)
    with pytest.raises(SystemExit) as stop:
        flags = [word.format(tmp=tmp_path) for word in argv]
        cli.main(["prepare", str(tiny_path), str(tmp_path / "clip.mp4"), "-o", str(tmp_path / "a.ref"), *flags])
    said = " ".join(capsys.readouterr().err.split())
    assert stop.value.code == 2 and message in said and "Traceback" not in said
    assert not (tmp_path / "a.ref").exists()
