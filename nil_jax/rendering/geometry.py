"""Where a ray meets a geom, in closed form and in image space.

Axes: N environments, K geoms of one kind, S surfaces of a geom, C tiles of P x P pixels.

A point seen at image coordinates u = (x, y, 1) with nearness w has homogeneous coordinates `lens @ (u, w)` in a geom's
own frame (`camera.lens`). So

- a half-space `n.p <= h` is `w <= v` (camera outside) or `w >= v` (camera inside), with v linear in (x, y);
- a quadric `sum(a p^2) <= 1` is `m - s <= w <= m + s`, with m linear and s^2 quadratic in (x, y).

All that depends on the pose is a handful of coefficients per geom and environment; a pixel costs a few multiply-adds.
The nearest surface is the one of greatest w, and w = 0 is the background.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from nil_jax.rendering.camera import PRECISE

FAR = 1e9  # a nearness beyond all surfaces
ENDLESS = 1e6  # m: half size of a plane without bounds

Field = Float[Array, "C P P"]


class Surfaces(NamedTuple):
    """Surfaces `w = m +- sqrt(q)` in image space; leading axes [N, K, S], or [C, S] for one geom in each of C tiles."""

    linear: Array  # [.., 3] m, its coefficients of x, y, 1
    square: Array | None  # [.., 6] q, coefficients of x^2, y^2, xy, x, y, 1; None: all S are flat
    outside: Array  # [..] whether the camera is on the outer side


class Seen(NamedTuple):
    """What the pixels see of one geom, each [C, P, P]."""

    nearness: Array  # 0: miss
    along_x: Array  # how nearness changes with x and y there
    along_y: Array


class Kind(NamedTuple):
    """How one kind of geom is drawn.

    `prepare` turns the lens in the geoms' frames [N, K, 4, 4] and parameters [N, K, ..] into surfaces [N, K, S];
    `look` draws one geom, given its surfaces [C, S], into pixels x [C, 1, P], y [C, P, 1].
    """

    prepare: Callable[[Array, Array], Surfaces]
    look: Callable[[Surfaces, Array, Array], Seen]
    covers: Callable[[Surfaces, Array, Array], Bool[Array, "C P P"]]


def _away_from_zero(value: Array) -> Array:
    return jnp.where(jnp.abs(value) < 1e-6, jnp.where(value < 0, -1e-6, 1e-6), value)


def _linear(c: Array, x: Array, y: Array) -> Field:
    c = c[..., None, None]
    return c[..., 0, :, :] * x + (c[..., 1, :, :] * y + c[..., 2, :, :])


def _quadratic(c: Array, x: Array, y: Array) -> Field:
    c = c[..., None, None]
    xx, yy, xy, x1, y1, one = (c[..., i, :, :] for i in range(6))
    return (xx * x + (xy * y + x1)) * x + ((yy * y + y1) * y + one)


def _quadric(lens: Array, inverse_squares: Array) -> Surfaces:
    """The one surface `sum(inverse_squares * P^2) = s^2`.

    With the scaled lens (g | r) above (b | e), c^2 q = |b r - e g|^2 - |r x g|^2: the same number as the textbook
    discriminant `(r.g - e b)^2 - c (|g|^2 - b^2)`, c = |r|^2 - e^2 (Lagrange), without its cancellation for a small
    geom far away.
    """
    scaled = lens[..., :3, :] * jnp.sqrt(inverse_squares)[..., None]
    g, r, b, e = scaled[..., :3], scaled[..., 3:], lens[..., 3:, :3], lens[..., 3, 3]
    c = _away_from_zero(jnp.sum(r * r, axis=(-1, -2)) - e * e)
    middle = (e[..., None] * b[..., 0, :] - jnp.sum(r * g, axis=-2)) / c[..., None]
    cross, rest = jnp.cross(jnp.broadcast_to(r, g.shape), g, axis=-2), b * r - e[..., None, None] * g

    def gram(i, j):
        return jnp.sum(rest[..., i] * rest[..., j] - cross[..., i] * cross[..., j], axis=-1) / (c * c)

    pairs = [gram(0, 0), gram(1, 1), 2 * gram(0, 1), 2 * gram(0, 2), 2 * gram(1, 2), gram(2, 2)]
    return Surfaces(middle[..., None, :], jnp.stack(pairs, axis=-1)[..., None, :], (c > 0)[..., None])


def _planes(lens: Array, planes: Array) -> Surfaces:
    """Half-spaces [.., P, 4] `n.p <= h`, given as (n, h)."""
    signed = jnp.concatenate([planes[..., :3], -planes[..., 3:]], axis=-1)
    row = jnp.einsum("...pi,...ij->...pj", signed, lens, precision=PRECISE)
    w = _away_from_zero(row[..., 3])
    return Surfaces(-row[..., :3] / w[..., None], None, w > 0)


def _joined(parts: list[Surfaces]) -> Surfaces:
    squares = [jnp.zeros((*p.linear.shape[:-1], 6)) if p.square is None else p.square for p in parts]
    linear = jnp.concatenate([p.linear for p in parts], axis=-2)
    return Surfaces(linear, jnp.concatenate(squares, axis=-2), jnp.concatenate([p.outside for p in parts], axis=-1))


def _flat(s: Surfaces, i: int, x: Array, y: Array) -> Seen:
    return Seen(_linear(s.linear[..., i, :], x, y), s.linear[..., i, 0, None, None], s.linear[..., i, 1, None, None])


def either(condition: Array, a: Seen, b: Seen) -> Seen:
    """`a` where the condition holds, `b` elsewhere."""
    return Seen(*(jnp.where(condition, new, old) for new, old in zip(a, b, strict=True)))


def _clip(s: Surfaces, indices: range, x: Array, y: Array, low: Array, high: Seen) -> tuple[Array, Seen]:
    """Cuts the interval [low, high] of w with half-spaces."""
    for i in indices:
        face = _flat(s, i, x, y)
        outside = s.outside[..., i, None, None]
        low = jnp.maximum(low, jnp.where(outside, -FAR, face.nearness))
        high = either(outside & (face.nearness < high.nearness), face, high)
    return low, high


def _only(condition: Array, seen: Seen) -> Seen:
    return seen._replace(nearness=jnp.where(condition, seen.nearness, 0.0))


def _root(s: Surfaces, i: int, x: Array, y: Array) -> tuple[Array, Array, Array]:
    square = _quadratic(s.square[..., i, :], x, y)
    return _linear(s.linear[..., i, :], x, y), jnp.sqrt(jnp.maximum(square, 0.0)), square > 0


def _curved(s: Surfaces, i: int, x: Array, y: Array, middle: Array, root: Array) -> Seen:
    """The near side of a quadric: w = m + sqrt(q), hence dw = dm + dq / (2 sqrt(q))."""
    mx, my, xx, yy, xy, x1, y1 = (
        c[..., i, j, None, None] for c, js in ((s.linear, (0, 1)), (s.square, range(5))) for j in js
    )
    half = 0.5 / jnp.maximum(root, 1e-9)
    return Seen(middle + root, mx + (2 * xx * x + (xy * y + x1)) * half, my + (2 * yy * y + (xy * x + y1)) * half)


def _ellipsoid(s: Surfaces, x: Array, y: Array, i: int = 0) -> Seen:
    middle, root, meets = _root(s, i, x, y)
    return _only(meets & s.outside[..., i, None, None], _curved(s, i, x, y, middle, root))


def _ellipsoid_covers(s: Surfaces, x: Array, y: Array, i: int = 0) -> Array:
    meets = _quadratic(s.square[..., i, :], x, y) > 0
    return meets & (_linear(s.linear[..., i, :], x, y) > 0) & s.outside[..., i, None, None]


def _prepare_cylinder(lens: Array, size: Array) -> Surfaces:
    radius, half = size[..., 0], size[..., 1]
    zero, one = jnp.zeros_like(radius), jnp.ones_like(radius)
    side = _quadric(lens, jnp.stack([radius**-2, radius**-2, zero], axis=-1))
    caps = [jnp.stack([zero, zero, sign * one, half], axis=-1) for sign in (1, -1)]
    return _joined([side, _planes(lens, jnp.stack(caps, axis=-2))])


def _cylinder(s: Surfaces, x: Array, y: Array) -> Seen:
    middle, root, meets = _root(s, 0, x, y)
    outside = s.outside[..., 0, None, None]
    side = _curved(s, 0, x, y, middle, root)
    side = side._replace(nearness=jnp.where(outside, side.nearness, FAR))
    low, high = _clip(s, range(1, 3), x, y, middle + jnp.where(outside, -root, root), side)
    return _only(meets & (high.nearness >= low) & (high.nearness > 0) & (high.nearness < FAR), high)


def _prepare_capsule(lens: Array, size: Array) -> Surfaces:
    squares = jnp.broadcast_to(size[..., :1] ** -2, (*size.shape[:-1], 3))
    along = size[..., 1, None] * lens[..., 3, :]  # in the frame of the ball at the end, P is P -+ half s
    ends = [_quadric(lens.at[..., 2, :].add(sign * along), squares) for sign in (1, -1)]
    return _joined([_prepare_cylinder(lens, size), *ends])


def _capsule(s: Surfaces, x: Array, y: Array) -> Seen:
    """A cylinder (whose caps are never seen) and a ball at either end."""
    seen = _cylinder(s, x, y)
    for i in (3, 4):
        ball = _ellipsoid(s, x, y, i)
        seen = either(ball.nearness >= seen.nearness, ball, seen)
    return seen


def _capsule_covers(s: Surfaces, x: Array, y: Array) -> Array:
    return (_cylinder(s, x, y).nearness > 0) | _ellipsoid_covers(s, x, y, 3) | _ellipsoid_covers(s, x, y, 4)


def _polytope(s: Surfaces, x: Array, y: Array) -> Seen:
    low, high = _clip(s, range(s.outside.shape[-1]), x, y, jnp.float32(0), Seen(*map(jnp.float32, (FAR, 0, 0))))
    return _only((high.nearness >= low) & (high.nearness < FAR), high)


def _prepare_plane(lens: Array, size: Array) -> Surfaces:
    """The plane z = 0 and, where a half size is not 0, the planes that bound it."""
    half = jnp.where(size > 0, size, ENDLESS)
    zero, one = jnp.zeros_like(size[..., 0]), jnp.ones_like(size[..., 0])
    rows = [(zero, zero, one, zero)]
    for sign in (one, -one):
        rows += [(sign, zero, zero, half[..., 0]), (zero, sign, zero, half[..., 1])]
    return _planes(lens, jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2))


def _plane(s: Surfaces, x: Array, y: Array) -> Seen:
    """Seen from above only, within its bounds."""
    seen = _flat(s, 0, x, y)
    low, high = _clip(s, range(1, 5), x, y, jnp.float32(0), Seen(*map(jnp.float32, (FAR, 0, 0))))
    w = seen.nearness
    return _only(s.outside[..., 0, None, None] & (low <= w) & (w <= high.nearness), seen)


# Parameters: ellipsoid [3] inverse squared radii; capsule and cylinder [2] radius and half length; plane [2] half
# sizes, 0 for endless; polytope [P, 4] outward normals and offsets.
KINDS = {
    "ellipsoid": Kind(_quadric, _ellipsoid, _ellipsoid_covers),
    "capsule": Kind(_prepare_capsule, _capsule, _capsule_covers),
    "cylinder": Kind(_prepare_cylinder, _cylinder, lambda s, x, y: _cylinder(s, x, y).nearness > 0),
    "polytope": Kind(_planes, _polytope, lambda s, x, y: _polytope(s, x, y).nearness > 0),
    "plane": Kind(_prepare_plane, _plane, lambda s, x, y: _plane(s, x, y).nearness > 0),
}


def local_lens(
    matrix: Float[Array, "N 4 4"], xpos: Float[Array, "N K 3"], xmat: Float[Array, "N K 3 3"]
) -> Float[Array, "N K 4 4"]:
    """The lens as seen from the frame of each geom; `xpos` is around the followed point."""
    matrix = matrix[:, None]
    moved = matrix[..., :3, :] - xpos[..., None] * matrix[..., 3:, :]
    turned = jnp.einsum("nkij,nkil->nkjl", xmat, moved, precision=PRECISE)
    return jnp.concatenate([turned, jnp.broadcast_to(matrix[..., 3:, :], (*turned.shape[:2], 1, 4))], axis=-2)
