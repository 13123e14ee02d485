"""Pictures of a run: learning curves and the comparison video.

Axes: T ticks, S side of a panel.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from nil_jax.reference import Reference, write_video

PANEL, LABEL = 320, 24  # px
REFERENCE_COLOR, AGENT_COLOR = (214, 69, 65), (52, 100, 200)
CURVES = (
    ("episode_return", "return of finished episodes"),
    ("evaluation/return", "evaluation: return"),
    ("reward/mask", "mask IoU"),
    ("forward_velocity", "forward velocity [m/s]"),
    ("learner/critic_loss", "critic loss"),
    ("learner/entropy", "policy entropy [nat]"),
)


def write_curves(path: Path, rows: Sequence[dict[str, float]]) -> None:
    """One panel for each curve that the run has, over control steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    present = [(name, title) for name, title in CURVES if any(row.get(name) is not None for row in rows)]
    if not present:
        return
    columns = min(3, len(present))
    figure = Figure(figsize=(4.2 * columns, 3 * -(-len(present) // columns)), layout="constrained")
    FigureCanvasAgg(figure)
    for i, (name, title) in enumerate(present):
        axes = figure.add_subplot(-(-len(present) // columns), columns, i + 1)
        points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        axes.plot(*zip(*points, strict=True), marker="o" if len(points) < 30 else None, markersize=3, linewidth=1.2)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("control steps", fontsize=8)
        axes.grid(alpha=0.3)
        axes.locator_params(axis="x", nbins=5)
    figure.savefig(path, dpi=110)


def comparison_frames(reference: Reference, pictures: UInt8[np.ndarray, "T S S 3"]) -> UInt8[np.ndarray, "T h w 3"]:
    """Reference beside agent beside the overlay of their silhouettes (red: reference only, blue: agent only)."""
    frames = []
    for t, picture in enumerate(pictures):
        shown = t % len(reference.frames)
        clip, agent = _resized(reference.frames[shown]), _resized(picture)
        ref_mask = np.asarray(Image.fromarray(reference.masks[shown]).resize((PANEL, PANEL), Image.Resampling.NEAREST))
        agent_mask = (agent < 250).any(axis=-1)
        overlay = np.full((PANEL, PANEL, 3), 255, np.uint8)
        overlay[ref_mask & agent_mask] = (150, 150, 150)
        overlay[ref_mask & ~agent_mask] = REFERENCE_COLOR
        overlay[agent_mask & ~ref_mask] = AGENT_COLOR
        frames.append(_labelled(np.concatenate([clip, agent, overlay], axis=1), ("reference", "agent", "overlay")))
    return np.stack(frames)


def write_comparison(path: Path, reference: Reference, pictures: UInt8[np.ndarray, "T S S 3"]) -> None:
    """The comparison video, at the reference's rate; it ends where the agent falls."""
    write_video(path, comparison_frames(reference, pictures), reference.fps)


def _resized(image: UInt8[np.ndarray, "S S 3"]) -> UInt8[np.ndarray, "s s 3"]:
    return np.asarray(Image.fromarray(image).resize((PANEL, PANEL), Image.Resampling.BILINEAR))


def _labelled(image: UInt8[np.ndarray, "S W 3"], labels: Sequence[str]) -> UInt8[np.ndarray, "s w 3"]:
    canvas = Image.new("RGB", (image.shape[1], image.shape[0] + LABEL), "white")
    canvas.paste(Image.fromarray(image), (0, LABEL))
    draw = ImageDraw.Draw(canvas)
    for i, label in enumerate(labels):
        draw.text((i * PANEL + 8, 6), label, fill=(60, 60, 60))
    return np.asarray(canvas)
