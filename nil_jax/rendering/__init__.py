"""A batched JAX renderer: MuJoCo poses to masks, colours, depth and segmentation."""

from nil_jax.rendering.backends import JaxRenderer, Renderer, WarpRenderer
from nil_jax.rendering.camera import Camera, model_camera, pixel_rays, side_camera
from nil_jax.rendering.render import Frames, render, render_masks
from nil_jax.rendering.scene import Scene, make_scene
from nil_jax.rendering.still import still

__all__ = [
    "Camera",
    "Frames",
    "JaxRenderer",
    "Renderer",
    "Scene",
    "WarpRenderer",
    "make_scene",
    "model_camera",
    "pixel_rays",
    "render",
    "render_masks",
    "side_camera",
    "still",
]
