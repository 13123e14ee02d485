"""Robot masks from a uniform background, without any model.

The background is estimated in every frame from the frame's border (a plane, so slow gradients are fine) and, where a
line crosses the whole picture behind the robot, from that row's own free pixels. What differs from it is the robot,
less what looks like a soft shadow on the floor, less small islands.

Axes: T frames, H rows, W columns. Colours are float in [0, 255].
"""

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

MIN_DIFFERENCE = 28.0  # levels; H.264 and JPEG ringing around a dark robot on white reaches 15
SHADOW_STRENGTH = 0.3  # a faint shadow takes at most this part of the background's brightness
SHADOW_SLOPE = 12.0  # levels a pixel; edges of the robot are steeper than a soft shadow
ISLAND = 0.02  # of the largest part's area; smaller parts are dropped (thin legs may come apart from the body)
SPECK = 0.002  # of the robot's area; smaller holes are filled
CRACK = (
    0.005  # of the frame's height: twice this is the width of the cracks (a white highlight on an edge) that are closed
)
STRIPE_WIDTH, FRINGE = 1.3, 0.04  # times the robot's; of the frame's height, what a stripe's soft edges may take
MIN_AREA, MAX_AREA = 0.001, 0.7  # of the frame, for a robot to be believed
EVERYWHERE = np.ones((3, 3), bool)  # diagonal neighbours count


def segment_uniform(frames: UInt8[np.ndarray, "T H W 3"]) -> Bool[np.ndarray, "T H W"]:
    """Masks of the one thing that stands before a uniform background.

    Gaps between legs stay open. A frame in which nothing is found has an empty mask as long as that is the exception.

    Raises:
        ValueError: The first frame, or more than half of all frames, shows no robot; or the background is not uniform.
    """
    masks = np.stack([_segment_frame(frame) for frame in frames])
    areas = masks.mean((1, 2))
    if np.median(areas) > MAX_AREA:
        raise ValueError(
            "segment: expected a robot on a uniform background, got foreground over "
            f"{np.median(areas):.0%} of the frame; use a clip with a plain background, or type: --segmenter sam2"
        )
    masks[areas < MIN_AREA] = False
    found = masks.any((1, 2))
    if not found[0] or found.mean() < 0.5:  # pyright: ignore
        what = f"none in {np.sum(~found)} of {len(frames)} frames" if found[0] else "none in the first frame"  # pyright: ignore
        raise ValueError(
            f"segment: expected a robot that stands out from a uniform background, got {what}; "
            "trim the clip or use one with more contrast"
        )
    return masks


def _segment_frame(frame: UInt8[np.ndarray, "H W 3"]) -> Bool[np.ndarray, "H W"]:
    image = frame.astype(np.float32)
    background, noise = _border_plane(image)
    threshold = max(MIN_DIFFERENCE, 6 * noise)
    mask = _difference(image, background) > threshold
    if mask.mean() > MAX_AREA:
        return mask
    stripes = _stripe_rows(mask)
    if stripes.any():
        background = _with_stripes(image, background, mask, stripes)
        mask &= _difference(image, background) > threshold
    return clean(mask & ~_shadow(image, background, mask))


def _difference(image: Float[np.ndarray, "*n 3"], background: Float[np.ndarray, "..."]) -> Float[np.ndarray, "*n"]:
    return _over_channels(np.maximum, np.abs(image - background))


def _over_channels(function: np.ufunc, colours: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n"]:
    """A reduction over red, green and blue; NumPy's own is twenty times slower over an axis of three."""
    return function(function(colours[..., 0], colours[..., 1]), colours[..., 2])


def _border_plane(image: Float[np.ndarray, "H W 3"]) -> tuple[Float[np.ndarray, "H W 3"], float]:
    """A colour plane through the border pixels, robust to a limb or a logo that reaches the border, and their noise."""
    height, width, _ = image.shape
    band = max(2, round(0.02 * min(height, width)))
    border = np.ones((height, width), bool)
    border[band:-band, band:-band] = False
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    basis = np.stack([np.ones_like(rows), rows / height - 0.5, columns / width - 0.5], -1)
    design, colours = basis[border], image[border]
    keep = _difference(colours, np.median(colours, 0)) < 60
    for _ in range(3):
        plane, *_ = np.linalg.lstsq(design[keep], colours[keep], rcond=None)
        error = _difference(colours, design @ plane)
        noise = 1.4826 * float(np.median(error))
        keep = error < max(4.0, 3 * noise)
    return (basis @ plane).astype(np.float32), noise  # pyright: ignore


def _stripe_rows(mask: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, " H"]:
    """Rows that differ from the background to the left and to the right of the robot: a horizon, a floor line.

    They reach further to the sides than what is left without them: else it is the trunk of a quadruped.
    """
    none = np.zeros(len(mask), bool)
    columns = mask.sum(0)
    free = columns < 0.3 * columns.max()
    if not free.any():
        return none
    centre = np.average(np.arange(mask.shape[1]), weights=columns)
    left, right = free & (np.arange(mask.shape[1]) < centre), free & (np.arange(mask.shape[1]) > centre)
    if not (left.any() and right.any()):
        return none
    stripes = (mask[:, left].mean(1) > 0.4) & (mask[:, right].mean(1) > 0.4)
    fringe = FRINGE * len(mask)
    return stripes if _width(mask[stripes], 0) > STRIPE_WIDTH * _width(mask[~stripes], fringe) else none


def _width(mask: Bool[np.ndarray, "h W"], fringe: float) -> int:
    """From the first to the last column that holds more than so many pixels."""
    columns = np.flatnonzero(mask.sum(0) > fringe)
    return int(np.ptp(columns)) if len(columns) else 0


def _with_stripes(image, background, mask, stripes):
    """The background with each stripe row's own colour, from the pixels that differ in columns free of the robot."""
    columns = (mask & ~stripes[:, None]).sum(0)
    free = columns < 0.02 * len(mask)
    result = background.copy()
    for row in np.flatnonzero(stripes):
        own = image[row, mask[row] & free]
        if len(own):
            result[row] = np.median(own, 0)
    return result


def _shadow(image, background, mask) -> Bool[np.ndarray, "H W"]:
    """Soft, colourless darkening near the lowest part of the robot, bordered by more background than robot."""
    rows = np.flatnonzero(mask.any(1))
    if not len(rows):
        return np.zeros_like(mask)
    low = slice(int(rows[-1] - 0.25 * (rows[-1] - rows[0])), None)
    ratio = image[low] / np.maximum(background[low], 1.0)
    darkest, lightest = _over_channels(np.minimum, ratio), _over_channels(np.maximum, ratio)
    grey = _over_channels(np.add, image[low]) / 3
    slope = np.hypot(ndimage.sobel(grey, 0), ndimage.sobel(grey, 1)) / 8
    candidate = np.zeros_like(mask)
    candidate[low] = (darkest > 1 - SHADOW_STRENGTH) & (lightest < 1) & (lightest - darkest < 0.06)
    candidate[low] &= mask[low] & (slope < SHADOW_SLOPE)
    labels, count = ndimage.label(candidate, EVERYWHERE)  # pyright: ignore
    shadow = np.zeros_like(mask)
    for label, box in enumerate(ndimage.find_objects(labels, count), 1):
        box = tuple(slice(max(0, part.start - 1), part.stop + 1) for part in box)
        part = labels[box] == label
        rim = ndimage.binary_dilation(part, EVERYWHERE) & ~part
        if mask[box][rim].mean() < 0.5:
            shadow[box] |= part
    return shadow


def clean(mask: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """Without islands, and without tiny holes and cracks where the robot happens to have the background's colour."""
    radius = max(1, round(CRACK * len(mask)))
    mask = ndimage.binary_closing(np.pad(mask, radius), EVERYWHERE, iterations=radius)[radius:-radius, radius:-radius]
    labels, count = ndimage.label(mask, EVERYWHERE)  # pyright: ignore
    if not count:
        return mask
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    keep = areas >= max(3.0, ISLAND * areas.max())
    mask = keep[labels]  # pyright: ignore
    holes, _ = ndimage.label(~mask)  # pyright: ignore
    small = np.bincount(holes.ravel()) < SPECK * mask.sum()
    small[0] = False
    return mask | small[holes]


def square_crop(masks: Bool[np.ndarray, "T H W"], fill: float = 0.85) -> tuple[int, int, int]:
    """One square for the whole clip, around the robot in nearly all frames: `(top, left, side)` in pixels.

    It may reach outside the frame. The 2nd and 98th percentiles over frames keep one bad mask from widening it.

    Args:
        masks: At least one is not empty.
        fill: Part of the square's side that the robot's longer extent covers.
    """
    boxes = np.array([bounding_box(mask) for mask in masks if mask.any()])
    (top, left), (bottom, right) = np.percentile(boxes[:, :2], 2, axis=0), np.percentile(boxes[:, 2:], 98, axis=0)
    side = int(np.ceil(max(bottom - top, right - left) / fill))
    return round((top + bottom - side) / 2), round((left + right - side) / 2), side


def bounding_box(mask: Bool[np.ndarray, "H W"]) -> tuple[int, int, int, int]:
    """Top, left, bottom and right, the latter two behind the last row and column; the mask is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return rows[0], columns[0], rows[-1] + 1, columns[-1] + 1


def crop(images: np.ndarray, square: tuple[int, int, int], padding: int) -> np.ndarray:
    """Cuts `(top, left, side)` out of images `[T, H, W, ...]`; outside the frame stands `padding`."""
    top, left, side = square
    height, width = images.shape[1:3]
    result = np.full((len(images), side, side, *images.shape[3:]), padding, images.dtype)
    y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + side, height), min(left + side, width)
    result[:, y0 - top : y1 - top, x0 - left : x1 - left] = images[:, y0:y1, x0:x1]
    return result
