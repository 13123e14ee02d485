"""From a surface to its colour: one lamp at the camera, one above, and ambient light, on a white background.

Axes: N environments, H image rows, W image columns, G geoms of the model.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

AMBIENT, HEAD, LAMP = (
    0.38,
    0.32,
    0.45,
)  # shares of the albedo; a surface that faces the lamp comes out a little brighter
GLOSS, SHININESS = 0.16, 8  # white highlight of the lamp at the camera: shows the shape of dark robots
LAMP_DIRECTION = np.array([0.25, -0.45, 0.857], np.float32)  # towards the lamp, world axes, length 1
FLOOR_TILE = 0.5  # m
FLOOR_RGB = (0.86, 0.80)  # grey of the two kinds of tile
FLOOR_FADE = 0.08  # 1/m^2: how fast the floor turns into the white background with distance


def dot(a: Array, b: Array) -> Array:
    """Scalar product over the last axis, of arrays of equal rank."""
    return jnp.sum(a * b, axis=-1)


def shade(
    albedo: Float[Array, "N H W 3"], normal: Float[Array, "N H W 3"], view: Float[Array, "N H W 3"]
) -> Float[Array, "N H W 3"]:
    """Phong's law: `albedo (ambient + head n.v + lamp n.l) + gloss (n.v)^shininess`; unit vectors, products >= 0."""
    lamp = jnp.asarray(LAMP_DIRECTION).reshape(1, 1, 1, 3)
    facing = jnp.maximum(dot(normal, view), 0.0)
    light = AMBIENT + HEAD * facing + LAMP * jnp.maximum(dot(normal, lamp), 0.0)
    return albedo * light[..., None] + GLOSS * facing[..., None] ** SHININESS


def floor_rgb(eye: Float[Array, "N 3"], directions: Float[Array, "N H W 3"]) -> Float[Array, "N H W 3"]:
    """The floor z = 0 as a pale checkerboard that fades into white; white where a ray does not meet it."""
    eye = eye[:, None, None, :]
    below = directions[..., 2] < -1e-6
    depth = eye[..., 2] / jnp.where(below, -directions[..., 2], 1.0)
    xy = eye[..., :2] + depth[..., None] * directions[..., :2]
    tile = jnp.floor(xy / FLOOR_TILE)
    grey = jnp.where(jnp.mod(tile[..., 0] + tile[..., 1], 2.0) < 1, *FLOOR_RGB)
    away = jnp.sum((xy - eye[..., :2]) ** 2, axis=-1)
    shown = jnp.where(below & (eye[..., 2] > 0), jnp.exp(-FLOOR_FADE * away), 0.0)
    return jnp.repeat((1 - shown * (1 - grey))[..., None], 3, axis=-1)
