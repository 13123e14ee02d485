"""From a surface to its colour: one lamp at the camera, one above, and ambient light, on a white background."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

# Shares of the albedo; a surface that faces the lamp comes out a little brighter.
AMBIENT, HEAD, LAMP = 0.38, 0.32, 0.45
GLOSS, SHININESS = 0.16, 8  # white highlight of the lamp at the camera: shows the shape of dark robots
BRIGHTEST = 0.94  # of a robot, in [0, 1]: one as white as the background would have holes in its silhouette
LAMP_DIRECTION = (0.25, -0.45, 0.857)  # towards the lamp, world axes, length 1

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
