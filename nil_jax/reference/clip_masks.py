"""The robot's masks in every frame of a clip, without short gaps, and how far each can be trusted.

They come from a segmenter, or from the user.

Axes: T frames, H rows, W columns, G frames of a gap, S side of a square.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from nil_jax.reference.segment import EVERYWHERE, bounding_box, crop, segment_uniform
from nil_jax.reference.segment_sam2 import load_sam2, segment_sam2, start_prompt
from nil_jax.reference.video import Video, interpolate_masks, read_video, signed_distance

SEGMENTERS = ("uniform", "sam2")
BRIGHT = 128  # levels; from here on a pixel of a mask's picture is the robot
LONGEST_GAP = 5  # frames; over more of them a walking robot does not keep its pose
COLLAPSED = 0.5  # of the usual area: less is a mask that lost the robot
COARSE = 128  # px; masks are thinned out to at least this many a side before they are compared
ON_EDGE = 0.03  # of the robot's size; a mask that lies along the frame's edge for more goes on beyond it
CUT = 0.1  # of the frames; the robot may touch the edge in fewer
ALIKE = 0.3  # of the largest part's area; a part as large as that is no crumb
REACH = 0.05  # of the robot's size; a foot in mid-swing moves about that far in a thirtieth of a second


class ClipMasks(NamedTuple):
    """The masks of a clip."""

    masks: Bool[np.ndarray, "T H W"]
    confidence: Float[np.ndarray, " T"]  # in [0, 1]; 0 where the mask is empty or filled in
    provenance: Mapping[str, Any]  # JSON values


def find_masks(
    env: Any,
    video: Video,
    segmenter: str,
    model: str,
    given: Bool[np.ndarray, "T H W"] | None = None,
    progress: Callable[[float], None] | None = None,
) -> ClipMasks:
    """Masks of the robot; gaps of up to five frames are filled in.

    A frame's confidence is its `agreement` with its neighbours; with SAM 2, times the probability that
    the robot is there.

    Args:
        env: The robot, from `nil_jax.envs.make`.
        video: The clip.
        segmenter: One of `SEGMENTERS`.
        model: SAM 2's folder or Hugging Face id.
        given: Masks that take the segmenter's place.
        progress: Called with the finished part, in [0, 1].

    Raises:
        ValueError: The robot is not found, or not in most of the frames; it is cut by the frame; several things stand
            side by side (only without SAM 2 and given masks, which choose one); the given masks do not fit the clip; or
            SAM 2 cannot be loaded.
    """
    presence = np.ones(len(video.frames))
    if given is not None:
        if segmenter != "uniform":
            raise ValueError(f"segmenter: expected none beside given masks, got {segmenter}; leave one of them out")
        _expect_like(given, video)
        masks = given
        about = {"segmentation": "given", "masks_sha256": hashlib.sha256(np.ascontiguousarray(given)).hexdigest()}
    elif segmenter == "sam2":
        sam2 = load_sam2(model)
        masks, presence = segment_sam2(video.frames, start_prompt(env, video.frames[0]), sam2, progress=progress)
        about = {"segmentation": "sam2", "segmentation_model": dict(sam2.identity)}
    else:
        masks, about = segment_uniform(video.frames), {"segmentation": "uniform"}
        _expect_one(masks)
    found = np.any(masks, (1, 2))
    if not found[0] or np.mean(found) < 0.5:
        what = "none in the first frame" if not found[0] else f"none in {np.sum(~found)} of {len(found)} frames"
        raise ValueError(
            f"segment: expected the robot's mask in the first and most other frames, got {what}; use a clip that "
            "starts with the picture of `nil-jax frame`, or give masks with --masks"
        )
    _expect_whole(masks)
    masks, filled = bridge_gaps(masks)
    confidence = np.where(filled, 0.0, agreement(masks) * presence)
    return ClipMasks(masks, confidence, about | {"segmentation_confidence": _summary(confidence, filled)})


def _expect_one(masks: Bool[np.ndarray, "T H W"]) -> None:
    several = np.array([_side_by_side(mask) for mask in masks])
    if several.mean() > 0.5:
        raise ValueError(
            f"segment: expected one robot, got several things side by side in {several.sum()} of {len(masks)} frames; "
            "use a clip with the robot alone, or type: --segmenter sam2, or give masks with --masks"
        )


def _side_by_side(mask: Bool[np.ndarray, "H W"]) -> bool:
    """Whether another part of comparable size stands beside the largest one.

    What a highlight breaks off a robot lies above or below the rest.
    """
    labels, _ = ndimage.label(mask, EVERYWHERE)  # pyright: ignore
    areas, columns = np.bincount(labels.ravel())[1:], [box[1] for box in ndimage.find_objects(labels)]
    if not len(areas):
        return False
    largest = columns[areas.argmax()]
    return any(
        area >= ALIKE * areas.max() and (part.stop <= largest.start or part.start >= largest.stop)
        for area, part in zip(areas, columns, strict=True)
    )


def _expect_whole(masks: Bool[np.ndarray, "T H W"]) -> None:
    boxes = np.array([bounding_box(mask) for mask in masks if mask.any()])
    least = max(3.0, ON_EDGE * float(np.median(np.max(boxes[:, 2:] - boxes[:, :2], 1))))
    edges = {"top": masks[:, 0], "bottom": masks[:, -1], "left": masks[:, :, 0], "right": masks[:, :, -1]}
    cut = {name: edge.sum(1) >= least for name, edge in edges.items()}
    frames = np.any(list(cut.values()), 0)
    if frames[0] or frames.mean() > CUT:
        where = " and ".join(name for name, hits in cut.items() if hits.any())
        raise ValueError(
            f"segment: expected the whole robot in the frame, got one cut at the {where} in {frames.sum()} of "
            f"{len(masks)} frames; trim the clip, or generate it again with more room around the robot"
        )


def _summary(confidence: Float[np.ndarray, " T"], filled: Bool[np.ndarray, " T"]) -> dict[str, Any]:
    worst = int(confidence.argmin())
    return {
        "mean": round(float(confidence.mean()), 4),
        "worst": round(float(confidence[worst]), 4),
        "worst_frame": worst,
        "filled_frames": int(filled.sum()),
    }


def read_masks(path: str | Path, video: Video) -> Bool[np.ndarray, "T H W"]:
    """Masks of a clip from a video or a folder of images, of which the bright pixels are the robot.

    Args:
        path: What `read_video` takes.
        video: The clip.

    Raises:
        ValueError: Cannot be read, or another number or size of frames than the clip's.
    """
    masks = np.stack([picture.mean(-1) >= BRIGHT for picture in read_video(path, fps=video.fps).frames])
    _expect_like(masks, video)
    return masks


def _expect_like(masks: np.ndarray, video: Video) -> None:
    if masks.dtype != bool:
        raise TypeError(f"masks: expected bool, got {masks.dtype}; convert with masks > threshold")
    if masks.shape != video.frames.shape[:3]:
        wanted, got = (f"{' x '.join(map(str, shape))}" for shape in (video.frames.shape[:3], masks.shape))
        raise ValueError(
            f"masks: expected as many frames of the same height and width as the clip's, {wanted}, got {got}; "
            "make them from this very clip"
        )


def bridge_gaps(masks: Bool[np.ndarray, "T H W"]) -> tuple[Bool[np.ndarray, "T H W"], Bool[np.ndarray, " T"]]:
    """Fills short gaps, in which masks vanish or collapse, from the masks before and after; and says where.

    A mask is lost where its area falls below half of the median over the 21 frames around it. Up to five such frames
    in a row are filled; longer gaps, and those at either end of the clip, stay as they are.

    Returns:
        Masks, and which of them were filled in.
    """
    areas = masks.sum((1, 2))
    lost = areas < COLLAPSED * ndimage.median_filter(areas, 4 * LONGEST_GAP + 1, mode="nearest")
    result, filled = masks.copy(), np.zeros(len(masks), bool)
    labels, _ = ndimage.label(lost)  # pyright: ignore
    for (gap,) in ndimage.find_objects(labels):
        length = gap.stop - gap.start
        if gap.start > 0 and gap.stop < len(masks) and length <= LONGEST_GAP:
            result[gap], filled[gap] = _between(masks[gap.start - 1], masks[gap.stop], length), True
    return result, filled


def _between(before, after, length: int) -> Bool[np.ndarray, "G H W"]:
    """Masks at even steps between two: interpolated around their centres, which move evenly.

    In place, a leg that moves by more than its own thickness would vanish half-way.
    """
    parts = np.arange(1, length + 1) / (length + 1)
    shapes = interpolate_masks(np.stack([_centred(before), _centred(after)]), parts)
    first, last = np.array(_square(before)), np.array(_square(after))
    corners = np.round(first + parts[:, None] * (last - first)).astype(int)
    (height, width), side = before.shape, max(before.shape)
    back = [crop(s[None], (-int(c[0]), -int(c[1]), side), False)[0] for s, c in zip(shapes, corners, strict=True)]
    return np.stack(back)[:, :height, :width]


def _square(mask: Bool[np.ndarray, "H W"]) -> tuple[int, int, int]:
    """A square around the mask's centre (anywhere, where it is empty) that holds the frame: as `crop` takes it."""
    side = 2 * max(mask.shape)
    centre = np.array(ndimage.center_of_mass(mask) if mask.any() else mask.shape)
    top, left = np.floor(centre + 0.5).astype(int) - side // 2  # not `round`, which takes halves to even numbers
    return int(top), int(left), side


def _centred(mask: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "S S"]:
    return crop(mask[None], _square(mask), False)[0]


def agreement(masks: Bool[np.ndarray, "T H W"]) -> Float[np.ndarray, " T"]:
    """How well each mask agrees with the one before or after it, whichever fits better: in [0, 1], 0 where empty.

    Of two masks, both centred, it is the part of one that lies within reach of the other, the smaller of both ways:
    legs that swing cost nothing, a leg that vanishes and a piece of background that joins do.
    """
    step = max(1, max(masks.shape[1:]) // COARSE)
    thin = masks[:, ::step, ::step]
    boxes = np.array([bounding_box(mask) for mask in thin if mask.any()])
    reach = REACH * np.median(np.max(boxes[:, 2:] - boxes[:, :2], 1)) if len(boxes) else 0.0
    pairs, last = [0.0], signed_distance(_centred(thin[0]))
    for mask in thin[1:]:
        this = signed_distance(_centred(mask))
        pairs.append(min(_within(last, this, reach), _within(this, last, reach)))
        last = this
    return np.maximum(pairs, [*pairs[1:], 0.0])


def _within(one: Float[np.ndarray, "S S"], other: Float[np.ndarray, "S S"], reach: float) -> float:
    """The part of one mask that lies within reach of another; both as signed distances."""
    inside = one < 0
    return float(np.mean(other[inside] <= reach)) if inside.any() else 0.0
