"""Where a ray meets a geom, in closed form and in image space.

Axes: N environments, K geoms of one kind, H image rows, W image columns, P planes of a polytope.

A point seen at image coordinates u = (x, y, 1) and depth t lies at `o + t E u` in a geom's own frame, where o is the
camera's position there and E the ray matrix. Divided by t it reads `E u + o w` with the inverse depth w = 1 / t. So

- a half-space `n.p <= h` is `w <= v` (camera outside) or `w >= v` (camera inside), with v linear in (x, y);
- a quadric `sum(a p^2) <= 1` is `m - s <= w <= m + s`, with m linear and s^2 quadratic in (x, y).

All that depends on the pose is a handful of coefficients per geom and environment; a pixel costs a few multiply-adds.
The nearest surface is the one of greatest w, and w = 0 is the background. A geom that contains the camera is not drawn.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from nil_jax.rendering.camera import PRECISE

FAR = 1e9  # 1/m: an inverse depth beyond all surfaces
ENDLESS = 1e6  # m: half size of a plane without bounds

Field = Float[Array, "N H W"]


class Surfaces(NamedTuple):
    """Surfaces `w = m +- sqrt(q)` in image space; leading axes [N, K, S], or [C, S] for one geom in each of C tiles."""

    linear: Array  # [.., 3] m, coefficients of x, y, 1
    square: Array | None  # [.., 6] q, coefficients of x^2, y^2, xy, x, y, 1; None: all S are flat
    outside: Array  # [..] whether the camera is on the outer side


class Kind(NamedTuple):
    """How one kind of geom is drawn.

    `prepare` turns ray matrix E [N, K, 3, 3], camera position o [N, K, 3] and parameters [N, K, ..] into surfaces;
    `nearest` gives, per pixel of one geom, the inverse depth (0: miss) and which of its surfaces is seen there.
    """

    surfaces: int | None  # S; None: one per parameter row
    prepare: Callable[[Array, Array, Array], Surfaces]
    nearest: Callable[[Surfaces, Array, Array], tuple[Field, Array]]
    covers: Callable[[Surfaces, Array, Array], Bool[Array, "N H W"]]


def _away_from_zero(value: Array) -> Array:
    return jnp.where(jnp.abs(value) < 1e-6, jnp.where(value < 0, -1e-6, 1e-6), value)


def _linear(c: Array, x: Array, y: Array) -> Field:
    c = c[..., None, None]
    return c[..., 0, :, :] * x + (c[..., 1, :, :] * y + c[..., 2, :, :])


def _quadratic(c: Array, x: Array, y: Array) -> Field:
    c = c[..., None, None]
    xx, yy, xy, x1, y1, one = (c[..., i, :, :] for i in range(6))
    return (xx * x + (xy * y + x1)) * x + ((yy * y + y1) * y + one)


def _quadric(rays: Array, origin: Array, inverse_squares: Array) -> Surfaces:
    """The one surface `sum(inverse_squares * p^2) = 1`.

    q = (|g|^2 - |r x g|^2) / c^2 with g, r the scaled ray and origin: the same number as the textbook discriminant
    `(r.g)^2 - (|r|^2 - 1) |g|^2` (Lagrange), without its cancellation for a small geom far away.
    """
    scale = jnp.sqrt(inverse_squares)
    g = rays * scale[..., None]
    r = origin * scale
    c = _away_from_zero(jnp.sum(r * r, axis=-1) - 1)
    middle = -jnp.sum(r[..., None] * g, axis=-2) / c[..., None]
    cross = jnp.cross(r[..., None], g, axis=-2)

    def gram(i, j):
        return jnp.sum(g[..., i] * g[..., j] - cross[..., i] * cross[..., j], axis=-1) / (c * c)

    pairs = [gram(0, 0), gram(1, 1), 2 * gram(0, 1), 2 * gram(0, 2), 2 * gram(1, 2), gram(2, 2)]
    return Surfaces(middle[..., None, :], jnp.stack(pairs, axis=-1)[..., None, :], (c > 0)[..., None])


def _planes(rays: Array, origin: Array, planes: Array) -> Surfaces:
    """Half-spaces [.., P, 4] `n.p <= h`, given as (n, h)."""
    normal, offset = planes[..., :3], planes[..., 3]
    w = _away_from_zero(jnp.sum(normal * origin[..., None, :], axis=-1) - offset)
    u = jnp.einsum("...pi,...ij->...pj", normal, rays, precision=PRECISE)
    return Surfaces(-u / w[..., None], None, w > 0)


def _joined(parts: list[Surfaces]) -> Surfaces:
    squares = [jnp.zeros((*p.linear.shape[:-1], 6)) if p.square is None else p.square for p in parts]
    linear = jnp.concatenate([p.linear for p in parts], axis=-2)
    return Surfaces(linear, jnp.concatenate(squares, axis=-2), jnp.concatenate([p.outside for p in parts], axis=-1))


def _clip(s: Surfaces, indices: range, x: Array, y: Array, low: Array, high: Array, seen: Array | int) -> tuple:
    """Cuts the interval [low, high] of w with half-spaces, and notes which surface bounds it from above."""
    for i in indices:
        v = _linear(s.linear[..., i, :], x, y)
        outside = s.outside[..., i, None, None]
        low = jnp.maximum(low, jnp.where(outside, -FAR, v))
        seen = jnp.where(outside & (v < high), i, seen)
        high = jnp.minimum(high, jnp.where(outside, v, FAR))
    return low, high, seen


def _root(s: Surfaces, i: int, x: Array, y: Array) -> tuple[Array, Array, Array]:
    square = _quadratic(s.square[..., i, :], x, y)
    return _linear(s.linear[..., i, :], x, y), jnp.sqrt(jnp.maximum(square, 0.0)), square > 0


def _ellipsoid(s: Surfaces, x: Array, y: Array, i: int = 0) -> tuple[Field, int]:
    middle, root, meets = _root(s, i, x, y)
    return jnp.where(meets & s.outside[..., i, None, None], middle + root, 0.0), i


def _ellipsoid_covers(s: Surfaces, x: Array, y: Array, i: int = 0) -> Array:
    meets = _quadratic(s.square[..., i, :], x, y) > 0
    return meets & (_linear(s.linear[..., i, :], x, y) > 0) & s.outside[..., i, None, None]


def _prepare_cylinder(rays: Array, origin: Array, size: Array) -> Surfaces:
    radius, half = size[..., 0], size[..., 1]
    zero, one = jnp.zeros_like(radius), jnp.ones_like(radius)
    side = _quadric(rays, origin, jnp.stack([radius**-2, radius**-2, zero], axis=-1))
    caps = [jnp.stack([zero, zero, sign * one, half], axis=-1) for sign in (1, -1)]
    return _joined([side, _planes(rays, origin, jnp.stack(caps, axis=-2))])


def _cylinder(s: Surfaces, x: Array, y: Array) -> tuple[Field, Array]:
    middle, root, meets = _root(s, 0, x, y)
    outside = s.outside[..., 0, None, None]
    high = jnp.where(outside, middle + root, FAR)
    low, high, seen = _clip(s, range(1, 3), x, y, middle + jnp.where(outside, -root, root), high, 0)
    return jnp.where(meets & (high >= low) & (high > 0) & (high < FAR), high, 0.0), seen


def _prepare_capsule(rays: Array, origin: Array, size: Array) -> Surfaces:
    squares = jnp.broadcast_to(size[..., :1] ** -2, origin.shape)
    up = jnp.stack([jnp.zeros_like(size[..., 1]), jnp.zeros_like(size[..., 1]), size[..., 1]], axis=-1)
    ends = [_quadric(rays, origin + sign * up, squares) for sign in (1, -1)]
    return _joined([_prepare_cylinder(rays, origin, size), *ends])


def _capsule(s: Surfaces, x: Array, y: Array) -> tuple[Field, Array]:
    """A cylinder (whose caps are never seen) and a ball at either end."""
    w, seen = _cylinder(s, x, y)[0], 0
    for i in (3, 4):
        ball, _ = _ellipsoid(s, x, y, i)
        seen = jnp.where(ball >= w, i, seen)
        w = jnp.maximum(w, ball)
    return w, seen


def _capsule_covers(s: Surfaces, x: Array, y: Array) -> Array:
    return (_cylinder(s, x, y)[0] > 0) | _ellipsoid_covers(s, x, y, 3) | _ellipsoid_covers(s, x, y, 4)


def _polytope(s: Surfaces, x: Array, y: Array) -> tuple[Field, Array]:
    low, high, seen = _clip(s, range(s.outside.shape[-1]), x, y, 0.0, FAR, 0)
    return jnp.where((high >= low) & (high < FAR), high, 0.0), seen


def _prepare_plane(rays: Array, origin: Array, size: Array) -> Surfaces:
    """The plane z = 0 and, where a half size is not 0, the planes that bound it."""
    half = jnp.where(size > 0, size, ENDLESS)
    zero, one = jnp.zeros_like(size[..., 0]), jnp.ones_like(size[..., 0])
    rows = [(zero, zero, one, zero)]
    for sign in (one, -one):
        rows += [(sign, zero, zero, half[..., 0]), (zero, sign, zero, half[..., 1])]
    return _planes(rays, origin, jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2))


def _plane(s: Surfaces, x: Array, y: Array) -> tuple[Field, Array]:
    """Seen from above only, within its bounds."""
    w = jnp.where(s.outside[..., 0, None, None], _linear(s.linear[..., 0, :], x, y), 0.0)
    low, high, _ = _clip(s, range(1, 5), x, y, 0.0, FAR, 0)
    return jnp.where((low <= w) & (w <= high), w, 0.0), 0


# Parameters: ellipsoid [3] inverse squared radii; capsule and cylinder [2] radius and half length; plane [2] half
# sizes, 0 for endless; polytope [P, 4] outward normals and offsets.
KINDS = {
    "ellipsoid": Kind(1, _quadric, _ellipsoid, _ellipsoid_covers),
    "capsule": Kind(5, _prepare_capsule, _capsule, _capsule_covers),
    "cylinder": Kind(3, _prepare_cylinder, _cylinder, lambda s, x, y: _cylinder(s, x, y)[0] > 0),
    "polytope": Kind(None, _planes, _polytope, lambda s, x, y: _polytope(s, x, y)[0] > 0),
    "plane": Kind(5, _prepare_plane, _plane, lambda s, x, y: _plane(s, x, y)[0] > 0),
}


def slopes(s: Surfaces, which: Array, w: Field, x: Array, y: Array) -> tuple[Field, Field]:
    """How w changes along x and y on surface `which` of the geom, pixel by pixel.

    (w - m)^2 = q, so dw = dm + dq / (2 (w - m)).
    """

    def chosen(coefficients: Array) -> list[Array]:
        result = [coefficients[..., 0, i, None, None] for i in range(coefficients.shape[-1])]
        for surface in range(1, coefficients.shape[-2]):
            new = coefficients[..., surface, :, None, None]
            result = [jnp.where(which == surface, new[..., i, :, :], old) for i, old in enumerate(result)]
        return result

    m = chosen(s.linear)
    if s.square is None:
        return m[0], m[1]
    q = chosen(s.square)
    root = 2 * (w - (m[0] * x + (m[1] * y + m[2])))
    root = jnp.where(jnp.abs(root) < 1e-9, 1e-9, root)
    return m[0] + (2 * q[0] * x + (q[2] * y + q[3])) / root, m[1] + (2 * q[1] * y + (q[2] * x + q[4])) / root


def local_rays(
    geom_xpos: Float[Array, "N K 3"],
    geom_xmat: Float[Array, "N K 3 3"],
    matrix: Float[Array, "N 3 3"],
    eye: Float[Array, "N 3"],
) -> tuple[Float[Array, "N K 3 3"], Float[Array, "N K 3"]]:
    """Ray matrix E and camera position o in the frame of each geom."""
    rays = jnp.einsum("nkij,nil->nkjl", geom_xmat, matrix, precision=PRECISE)
    origin = jnp.einsum("nkij,nki->nkj", geom_xmat, eye[:, None, :] - geom_xpos, precision=PRECISE)
    return rays, origin
