"""A verdict on a clip before hours of training: what is wrong with it as a reference, in numbers, and in one word.

Every part measures one defect `x` and turns it into `1 / (1 + (x / tolerance)^2)`: 1 is flawless, and at its tolerance
a part has lost half. The tolerances are set by eye on clips of three video models.

Axes: T frames, H rows, W columns, Q quantiles.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from numpy.lib.stride_tricks import sliding_window_view

TOLERANCES = {
    "first_frame": 0.25,  # 1 - IoU of robot and first frame
    "scale": 0.25,  # log of the height
    "bulk": 0.3,  # log of the area over the squared height
    "identity": 24.0,  # levels of colour
    "flicker": 0.08,  # relative change that is undone by the next frame
    "limbs": 0.15,  # share of the frames
    "floor": 0.08,  # robot sizes
    "centre": 0.15,  # robot sizes
    "rate": 0.125,  # s a picture
    "loop": 0.3,  # loss of IoU
}
GOOD, DOUBTFUL = 0.7, 0.4  # scores from which a clip is called so
GRID = 128  # pixels of the longer side that are looked at; more show nothing else
START, STEP = 0.2, 0.6  # s: what counts as the start; a step, whose ups and downs are no drift
REACH = 0.1  # robot sizes that a part may move from frame to frame; a runner's foot at 30 frames per second: 0.06
PART = 0.03  # of the robot's area: what vanishes or appears at once and is more than an outline's noise
STILL_AREA, STILL_LEVELS = 0.015, 2.0  # changes between two frames, of area and colour, below which they are the same
QUANTILES = np.linspace(0.02, 0.98, 25)


class Verdict(NamedTuple):
    """What is thought of a clip."""

    word: str  # "good", "doubtful" or "unusable"
    score: float  # in [0, 1]
    reason: str  # in plain English, the worst first
    parts: Mapping[str, float]  # name of a part -> in [0, 1]

    def as_json(self) -> dict[str, Any]:
        """JSON values, the word under "verdict"."""
        parts = {name: round(part, 4) for name, part in self.parts.items()}
        return {"verdict": self.word, "score": round(self.score, 4), "reason": self.reason, "parts": parts}


def in_words(verdict: Mapping[str, Any]) -> str:
    """One line for people, of what `Verdict.as_json` returned."""
    return f"{verdict['verdict']} as a reference (score {verdict['score']:.2f}): {verdict['reason']}"


class Finding(NamedTuple):
    """One defect."""

    defect: float  # >= 0, in the unit of its tolerance
    sentence: str  # that says it to people


class Clip(NamedTuple):
    """The frames that show a robot, and its box in each."""

    frames: UInt8[np.ndarray, "T H W 3"]
    masks: Bool[np.ndarray, "T H W"]
    fps: float  # frames per second
    top: Int[np.ndarray, " T"]  # first row
    bottom: Int[np.ndarray, " T"]  # row after the last
    area: Int[np.ndarray, " T"]  # px
    size: float  # px, the longer side of the usual box


def judge(
    frames: UInt8[np.ndarray, "T H W 3"],
    masks: Bool[np.ndarray, "T H W"],
    fps: float,
    *,
    first_frame_iou: float | None = None,
    loop: bool = False,
) -> Verdict:
    """Says whether a clip is usable as a reference, and why not.

    `score = sqrt(min(parts) * geometric_mean(parts))`: one part that fails cannot be bought off by the others, and
    small flaws add up. A clip is good from 0.7 on and unusable below 0.4.

    What is measured is the drawing, not the skill: a robot that stands still may be good. A robot that jumps on
    purpose loses in the part `floor`. A cut to another moment of the same gait is not seen.

    Args:
        frames: The clip.
        masks: Robot in each frame; at least the first one has one.
        fps: Frames per second.
        first_frame_iou: Of the fitted start pose with the first frame; None leaves that part out.
        loop: The last frame is followed by the first: how well that goes is a part too.

    Raises:
        ValueError: The first mask is empty.
    """
    if not masks[0].any():
        raise ValueError("verdict: expected a robot in the first mask, got an empty one; trim the clip")
    step = -(-max(masks.shape[1:]) // GRID)
    frames, masks = frames[:, ::step, ::step], masks[:, ::step, ::step]
    clip = _clip(frames, masks, fps)
    findings = {
        "scale": scale(clip),
        "bulk": bulk(clip),
        "identity": identity(clip),
        "flicker": flicker(clip),
        "limbs": limbs(masks, clip),
        "floor": floor(clip),
        "centre": centre(clip),
        "rate": rate(clip),
    }
    if first_frame_iou is not None:
        sentence = f"the robot overlaps with the first frame with an IoU of {first_frame_iou:.2f}"
        findings["first_frame"] = Finding(1 - first_frame_iou, sentence)
    if loop:
        findings["loop"] = seam(clip)
    return _concluded(findings)


def _concluded(findings: Mapping[str, Finding]) -> Verdict:
    parts = {name: 1 / (1 + (found.defect / TOLERANCES[name]) ** 2) for name, found in findings.items()}
    values = np.array(list(parts.values()))
    score = float(np.sqrt(values.min() * np.exp(np.log(values).mean())))
    word = "good" if score >= GOOD else "doubtful" if score >= DOUBTFUL else "unusable"
    worst = sorted(parts, key=parts.__getitem__)
    said = [name for name in worst if parts[name] < GOOD][:3]
    reason = "; ".join(findings[name].sentence for name in said) or f"at worst, {findings[worst[0]].sentence}"
    return Verdict(word, score, reason, parts)


def _clip(frames: UInt8[np.ndarray, "T H W 3"], masks: Bool[np.ndarray, "T H W"], fps: float) -> Clip:
    shown = masks.any((1, 2))
    frames, masks = frames[shown], masks[shown]
    rows = np.any(masks, 2)
    top, bottom = rows.argmax(1), rows.shape[1] - rows[:, ::-1].argmax(1)
    size = float(max(np.median(bottom - top), np.median(masks.any(1).sum(1))))
    return Clip(frames, masks, fps, top, bottom, masks.sum((1, 2)), size)


def scale(clip: Clip) -> Finding:
    """The robot grows or shrinks: `x = max |log(h / h_start)|`, h the median height over the time of a step."""
    drift = _drift(np.log(clip.bottom - clip.top), clip.fps)
    return Finding(abs(drift), f"the robot {'grows' if drift > 0 else 'shrinks'} by {abs(np.expm1(drift)):.0%}")


def bulk(clip: Clip) -> Finding:
    """Limbs appear, vanish or melt into the body: as `scale`, of the mask's area over the squared height."""
    drift = _drift(np.log(clip.area) - 2 * np.log(clip.bottom - clip.top), clip.fps)
    change = "fuller" if drift > 0 else "thinner"
    return Finding(abs(drift), f"the robot's outline becomes {abs(np.expm1(drift)):.0%} {change}")


def _drift(values: Float[np.ndarray, " T"], fps: float) -> float:
    """The largest change of the running median from the start, with its sign."""
    window = min(len(values), max(1, round(STEP * fps)))
    start = np.median(values[: max(1, round(START * fps))])
    changes = np.median(sliding_window_view(values, window), -1) - start
    return float(changes[np.abs(changes).argmax()])


def identity(clip: Clip) -> Finding:
    """The robot is restyled, or dissolves into fog: `x` = the 90th percentile over frames of `W1(c_t, c_0)`.

    `c_t` are the colours of the robot's pixels in frame t, and W1 the distance between two distributions: the mean
    difference between their quantiles, in levels of 255, averaged over red, green and blue.
    """
    colours = _colours(clip)
    drift = float(np.quantile(np.abs(colours - colours[0]).mean((1, 2)), 0.9))
    return Finding(drift, f"the robot's colours drift by {drift:.0f} of 255 levels")


def _colours(clip: Clip) -> Float[np.ndarray, "T Q 3"]:
    """Quantiles of the robot's colours."""
    result = []
    for frame, mask in zip(clip.frames, clip.masks, strict=True):
        pixels = np.sort(frame[mask], 0)
        result.append(pixels[np.round(QUANTILES * (len(pixels) - 1)).astype(int)])
    return np.stack(result).astype(np.float32)


def flicker(clip: Clip) -> Finding:
    """Brightness and outline tremble: `x = mean_t D c_t / 255 + D a_t`, with `D v_t = |v_t - (v_{t-1} + v_{t+1}) / 2|`.

    c are the quantiles of the robot's colours and a is the logarithm of its area, over the frames that differ from the
    one before.
    """
    new = np.flatnonzero(~_held(clip))
    if len(new) < 3:
        return Finding(0.0, "nothing flickers")
    colours, area = _colours(clip)[new], np.log(clip.area[new])
    trembling = sum(np.abs(values[1:-1] - (values[:-2] + values[2:]) / 2).mean() for values in (colours / 255, area))
    return Finding(float(trembling), f"outline and colours tremble by {trembling:.1%} from frame to frame")


def _held(clip: Clip) -> Bool[np.ndarray, " T"]:
    """Frames that repeat the one before."""
    changed = (clip.masks[1:] ^ clip.masks[:-1]).sum((1, 2)) / clip.area[1:]
    levels = np.abs(clip.frames[1:].astype(np.int16) - clip.frames[:-1]).mean(-1)
    levels = (levels * clip.masks[1:]).sum((1, 2)) / clip.area[1:]
    return np.concatenate([[False], (changed < STILL_AREA) & (levels < STILL_LEVELS)])


def limbs(masks: Bool[np.ndarray, "T H W"], clip: Clip) -> Finding:
    """Parts vanish, appear or jump: `x` = the share of frames where something of the robot is missing or too much.

    A part of frame t has vanished where no pixel of frame t + 1 is within reach, and has appeared where none of frame
    t - 1 is: legs that pass behind each other do neither. What vanished is missing until something appears again; what
    appeared is too much until something vanishes. The masks are those of all frames, also without a robot.
    """
    near = _dilated(masks, max(1, round(REACH * clip.size)))
    gone, came = masks[:-1] & ~near[1:], masks[1:] & ~near[:-1]
    less, more = (changed.sum((1, 2)) / np.median(clip.area) for changed in (gone, came))
    wrong = ~np.any(masks, (1, 2))
    wrong[1:] |= np.minimum(less, more) > PART
    wrong[1:] |= _lasting(more - less)
    rows = (gone | came)[np.maximum(less, more) > PART].sum((0, 2))
    middle = int(np.median(clip.top + clip.bottom) / 2)
    what = "the legs" if rows[middle:].sum() > rows[:middle].sum() else "parts of the robot"
    return Finding(float(wrong.mean()), f"{what} vanish, appear or jump in {wrong.sum()} of {len(masks)} frames")


def _lasting(changes: Float[np.ndarray, " T"]) -> Bool[np.ndarray, " T"]:
    """From each sudden change on, until a sudden one the other way or until gradual ones have undone it."""
    surplus, result = 0.0, np.zeros(len(changes), bool)
    for t, change in enumerate(changes):
        sudden = abs(change) > PART
        if sudden and surplus * change < 0:
            surplus = 0.0
        elif sudden or surplus:
            surplus += float(change)
        if abs(surplus) < PART:
            surplus = 0.0
        result[t] = surplus != 0
    return result


def _dilated(masks: Bool[np.ndarray, "T H W"], radius: int) -> Bool[np.ndarray, "T H W"]:
    """Pixels with a pixel of the mask within a square of that radius."""
    for axis in (1, 2):
        padding = [(radius, radius) if axis == other else (0, 0) for other in range(3)]
        masks = np.any(sliding_window_view(np.pad(masks, padding), 2 * radius + 1, axis), -1)
    return masks


def floor(clip: Clip) -> Finding:
    """The lowest point leaves the floor line: `x` = the 90th percentile of `|bottom_t - median bottom| / size`."""
    leaves = float(np.quantile(np.abs(clip.bottom - np.median(clip.bottom)), 0.9)) / clip.size
    return Finding(leaves, f"the lowest point moves up and down by {leaves:.0%} of the robot's size")


def centre(clip: Clip) -> Finding:
    """The camera does not follow: `x` = the 90th percentile of `|x_t - x_0| / size`, x the middle of the upper half."""
    rows = np.arange(clip.masks.shape[1])
    upper = clip.masks & (2 * rows < (clip.top + clip.bottom)[:, None])[..., None]
    columns = upper.sum(1)
    middle = columns @ np.arange(columns.shape[1]) / columns.sum(1)
    wanders = float(np.quantile(np.abs(middle - middle[0]), 0.9)) / clip.size
    return Finding(wanders, f"the robot wanders sideways by {wanders:.0%} of its size")


def rate(clip: Clip) -> Finding:
    """The motion jerks: `x = sum_w n sum_{t in w} d_t^2 / (fps sum_w (sum_{t in w} d_t)^2)`, s between two pictures.

    `d_t = 1 - IoU` of a frame with the next; w are all windows of n frames, the time that a step takes. Of even motion
    that is 1 / fps; of pictures that are held for k frames, k / fps. A robot that stands still loses nothing.
    """
    moved, evenness = 1 - _ious(clip.masks[1:], clip.masks[:-1]), 1.0
    if moved.any():
        steps = min(len(moved), max(1, round(STEP * clip.fps)))
        windows = sliding_window_view(moved, steps)
        evenness = (windows.sum(1) ** 2).sum() / (steps * (windows**2).sum())
    seconds = float(1 / (clip.fps * evenness))
    return Finding(seconds, f"the motion is that of {1 / seconds:.0f} pictures per second")


def seam(clip: Clip) -> Finding:
    """The loop does not close: `x = 1 - IoU(last, first) / median IoU of neighbours`, not below 0."""
    usual = np.median(_ious(clip.masks, np.roll(clip.masks, 1, 0)))
    loss = max(0.0, 1 - float(_ious(clip.masks[-1:], clip.masks[:1])[0] / max(usual, 1e-9)))
    return Finding(
        loss, f"the last frame does not lead back to the first (their overlap is {loss:.0%} less than usual)"
    )


def _ious(a: Bool[np.ndarray, "T H W"], b: Bool[np.ndarray, "T H W"]) -> Float[np.ndarray, " T"]:
    return (a & b).sum((1, 2)) / (a | b).sum((1, 2))
