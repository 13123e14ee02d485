"""From a surface to its colour: one lamp at the camera, one above, and ambient light, on a white background.

Axes: N environments, H image rows, W image columns, G geoms of the model.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

AMBIENT, HEAD, LAMP = (
    0.38,
    0.32,
    0.45,
)  # shares of the albedo; a surface that faces the lamp comes out a little brighter
GLOSS, SHININESS = 0.16, 8  # white highlight of the lamp at the camera: shows the shape of dark robots
LAMP_DIRECTION = (0.25, -0.45, 0.857)  # towards the lamp, world axes, length 1
FLOOR_TILE = 0.5  # m
FLOOR_RGB = (0.86, 0.80)  # grey of the two kinds of tile
FLOOR_FADE = 0.08  # 1/m^2: how fast the floor turns into the white background with distance


Vector = tuple[Array, Array, Array]  # one array per component: an axis of length 3 would keep a CPU from vectorising


def dot(a: Vector, b: Vector) -> Array:
    """Scalar product."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def unit(a: Vector) -> Vector:
    """The same direction with length 1; zero stays zero."""
    scale = jax.lax.rsqrt(jnp.maximum(dot(a, a), 1e-24))
    return tuple(c * scale for c in a)


def shade(albedo: Vector, normal: Vector, view: Vector) -> Vector:
    """Phong's law: `albedo (ambient + head n.v + lamp n.l) + gloss (n.v)^shininess`; unit vectors, products >= 0."""
    facing = jnp.maximum(dot(normal, view), 0.0)
    light = AMBIENT + HEAD * facing + LAMP * jnp.maximum(dot(normal, LAMP_DIRECTION), 0.0)
    return tuple(c * light + GLOSS * facing**SHININESS for c in albedo)


def floor_rgb(eye: Float[Array, "N 3"], directions: Vector) -> Vector:
    """The floor z = 0 as a pale checkerboard that fades into white; white where a ray does not meet it."""
    eye_x, eye_y, eye_z = (eye[:, i, None, None] for i in range(3))
    below = directions[2] < -1e-6
    depth = eye_z / jnp.where(below, -directions[2], 1.0)
    away_x, away_y = depth * directions[0], depth * directions[1]
    tile = jnp.floor((eye_x + away_x) / FLOOR_TILE) + jnp.floor((eye_y + away_y) / FLOOR_TILE)
    grey = jnp.where(jnp.mod(tile, 2.0) < 1, *FLOOR_RGB)
    shown = jnp.where(below & (eye_z > 0), jnp.exp(-FLOOR_FADE * (away_x**2 + away_y**2)), 0.0)
    return (1 - shown * (1 - grey),) * 3
