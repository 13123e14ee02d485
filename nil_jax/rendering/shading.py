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


def floor_rgb(lens: Float[Array, "N 4 4"], target: Float[Array, "N 3"], x: Array, y: Array) -> Vector:
    """The floor z = 0 as a pale checkerboard that fades into white with the distance from the followed point.

    White where a ray does not meet the floor from above. Arguments as in `camera.lens` and `camera.pixel_grid`.
    """

    def rows(i: int) -> list[Array]:
        return [lens[:, i, j, None, None] for j in range(4)]

    tx, ty, tz = (target[:, i, None, None] for i in range(3))
    zx, zy, z1, zw = (z + tz * s for z, s in zip(rows(2), rows(3), strict=True))  # height over the floor, times s
    above = zw > 0
    w = -(zx * x + zy * y + z1) / jnp.where(above, zw, 1.0)
    seen = above & (w > 1e-6)

    def at(i: int) -> Array:
        along_x, along_y, along_1, along_w = rows(i)
        return along_x * x + along_y * y + along_1 + along_w * w

    away_x, away_y = (at(i) / jnp.where(seen, at(3), 1.0) for i in (0, 1))
    tile = jnp.floor((tx + away_x) / FLOOR_TILE) + jnp.floor((ty + away_y) / FLOOR_TILE)
    grey = jnp.where(jnp.mod(tile, 2.0) < 1, *FLOOR_RGB)
    shown = jnp.where(seen, jnp.exp(-FLOOR_FADE * (away_x**2 + away_y**2)), 0.0)
    return (1 - shown * (1 - grey),) * 3
