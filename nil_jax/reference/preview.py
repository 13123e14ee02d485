"""`preview.mp4`: clip, mask and fit side by side, to be looked at before hours of training.

Axes: T ticks, S side of a panel.
"""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw
from scipy import ndimage

from nil_jax.envs import Body
from nil_jax.reference.prepare import Reference, clip_at_ticks, resized
from nil_jax.reference.video import Video, write_frames
from nil_jax.rendering import make_scene, render_masks

SIDE, LABEL, HOLD = 288, 24, 1.0  # pixels, pixels, s that the first frame with its fit is shown
BOTH, ONLY_CLIP, ONLY_FIT = (140, 140, 140), (220, 60, 50), (50, 90, 220)


def write_preview(path: str | Path, reference: Reference, env: Any, video: Video | None = None) -> None:
    """Writes an mp4: clip with the mask's outline, mask, and the pose that was fitted to it.

    Without poses for all ticks, the start pose stays as an outline over the moving mask, which shows how far the motion
    goes from it.

    Args:
        path: File to write.
        reference: What to show.
        env: Its robot.
        video: The clip it was made from; without it the first panel has no background.
    """
    reference.check_robot(env)
    clip = reference.frames if video is None else clip_at_ticks(video, reference)
    fits = fitted_masks(reference, env)
    made = reference.provenance
    labels = (
        f"clip: {str(made.get('source', ''))[:30]}",
        f"mask {reference.masks.shape[1]}x{reference.masks.shape[2]}",
        f"fit of {made.get('robot')}, first IoU {made.get('first_frame_iou', float('nan')):.2f}",
    )

    def panels(tick: int) -> UInt8[np.ndarray, "h w 3"]:
        fit = fits[min(tick, len(fits) - 1)]
        return _panels(clip[tick], reference.masks[tick], fit, labels, fitted=tick < len(fits))

    # One after the other: those of a long clip together would take gigabytes.
    ticks = [0] * round(HOLD * reference.fps) + list(range(len(reference.masks)))
    write_frames(path, map(panels, ticks), reference.fps)


def fitted_masks(reference: Reference, env: Any, size: int = SIDE) -> Bool[np.ndarray, "T S S"]:
    """The robot in the fitted poses through the fitted camera; one tick only where there is but the start pose."""
    qpos = reference.start_qpos[None] if reference.motion is None else reference.motion
    geom_xpos, geom_xmat, _, _ = Body(env).kinematics(qpos)
    target, scene = jnp.asarray(qpos[:, :3] * [1, 0, 0], jnp.float32), make_scene(env.mj_model, env.robot_geom_ids)
    poses = jnp.asarray(geom_xpos), jnp.asarray(geom_xmat)
    return np.asarray(render_masks(scene, *poses, reference.camera, target, height=size, width=size))


def _panels(frame, mask, fit, labels, *, fitted: bool) -> UInt8[np.ndarray, "h w 3"]:
    mask = resized(mask, SIDE)
    clip = resized(frame, SIDE).copy()
    clip[_outline(mask)] = ONLY_CLIP
    silhouette = np.where(mask[..., None], 0, 255).astype(np.uint8).repeat(3, -1)
    overlay = np.full_like(clip, 255)
    overlay[mask] = ONLY_CLIP if fitted else BOTH
    overlay[fit & mask if fitted else _outline(fit)] = BOTH if fitted else ONLY_FIT
    if fitted:
        overlay[fit & ~mask] = ONLY_FIT
    return np.concatenate([labelled(p, text) for p, text in zip((clip, silhouette, overlay), labels, strict=True)], 1)


def _outline(mask: Bool[np.ndarray, "S S"]) -> Bool[np.ndarray, "S S"]:
    return ndimage.binary_dilation(mask) & ~mask


def labelled(panel: UInt8[np.ndarray, "S S 3"], text: str) -> UInt8[np.ndarray, "h S 3"]:
    """A panel of a video under its title."""
    side = len(panel)
    image = Image.new("RGB", (side, side + LABEL), "white")
    image.paste(Image.fromarray(panel), (0, LABEL))
    draw = ImageDraw.Draw(image)
    draw.text((6, 6), text, fill="black")
    draw.line([(0, 0), (0, side + LABEL)], fill=(200, 200, 200))
    return np.asarray(image)
