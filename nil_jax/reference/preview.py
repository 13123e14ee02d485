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

from nil_jax import envs
from nil_jax.reference.prepare import Reference, clip_at_ticks, resized
from nil_jax.reference.video import Video, write_video
from nil_jax.rendering import make_scene, render_masks

SIDE, LABEL, HOLD = 288, 24, 1.0  # pixels, pixels, s that the first frame with its fit is shown
BOTH, ONLY_CLIP, ONLY_FIT = (140, 140, 140), (220, 60, 50), (50, 90, 220)


def write_preview(path: str | Path, reference: Reference, env: Any, video: Video | None = None) -> None:
    """Writes an mp4: clip with the mask's outline, mask, and the fitted start pose over the mask.

    The third panel is the first tick's fit throughout the hold at the start; after that the same pose stays as an
    outline over the moving mask, which shows how far the motion goes from it.

    Args:
        path: File to write.
        reference: What to show.
        env: Its robot.
        video: The clip it was made from; without it the first panel has no background.
    """
    reference.check_robot(env)
    clip = reference.frames if video is None else clip_at_ticks(video, reference)
    fit = fitted_mask(reference, env)
    made = reference.provenance
    labels = (
        f"clip: {str(made.get('source', ''))[:30]}",
        f"mask {reference.masks.shape[1]}x{reference.masks.shape[2]}",
        f"start pose of {made.get('robot')}, IoU {made.get('first_frame_iou', float('nan')):.2f}",
    )
    frames = [_panels(clip[t], reference.masks[t], fit, labels, first=t == 0) for t in range(len(clip))]
    hold = [frames[0]] * round(HOLD * reference.fps)
    write_video(path, np.stack(hold + frames), reference.fps)


def fitted_mask(reference: Reference, env: Any, size: int = SIDE) -> Bool[np.ndarray, "S S"]:
    """The robot at the fitted start pose through the fitted camera."""
    geom_xpos, geom_xmat = envs.forward_kinematics(env.mjx_model, jnp.asarray(reference.start_qpos))
    target = jnp.zeros((1, 3)).at[0, 0].set(reference.start_qpos[0])
    scene = make_scene(env.mj_model, env.robot_geom_ids)
    masks = render_masks(scene, geom_xpos[None], geom_xmat[None], reference.camera, target, height=size, width=size)
    return np.asarray(masks[0])


def _panels(frame, mask, fit, labels, *, first: bool) -> UInt8[np.ndarray, "h w 3"]:
    mask = resized(mask, SIDE)
    clip = resized(frame, SIDE).copy()
    clip[_outline(mask)] = ONLY_CLIP
    silhouette = np.where(mask[..., None], 0, 255).astype(np.uint8).repeat(3, -1)
    overlay = np.full_like(clip, 255)
    overlay[mask] = ONLY_CLIP if first else BOTH
    overlay[fit & mask if first else _outline(fit)] = BOTH if first else ONLY_FIT
    if first:
        overlay[fit & ~mask] = ONLY_FIT
    return np.concatenate([_labelled(p, text) for p, text in zip((clip, silhouette, overlay), labels, strict=True)], 1)


def _outline(mask: Bool[np.ndarray, "S S"]) -> Bool[np.ndarray, "S S"]:
    return ndimage.binary_dilation(mask) & ~mask


def _labelled(panel: UInt8[np.ndarray, "S S 3"], text: str) -> UInt8[np.ndarray, "h S 3"]:
    image = Image.new("RGB", (SIDE, SIDE + LABEL), "white")
    image.paste(Image.fromarray(panel), (0, LABEL))
    draw = ImageDraw.Draw(image)
    draw.text((6, 6), text, fill="black")
    draw.line([(0, 0), (0, SIDE + LABEL)], fill=(200, 200, 200))
    return np.asarray(image)
