"""Poses to pictures: a batched ray caster.

Axes: N environments, G geoms of the model, K geoms of one kind, H image rows, W image columns.

A scan runs over the geoms of each kind with the nearest surface so far, so memory grows with pixels and never with
pixels times geoms.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from nil_jax.rendering.camera import Camera, pixel_grid, ray_matrix
from nil_jax.rendering.geometry import KINDS, Kind, Surfaces, local_rays, slopes
from nil_jax.rendering.scene import Scene
from nil_jax.rendering.shading import floor_rgb, shade


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Frames:
    """Pictures of N environments."""

    rgb: UInt8[Array, "N H W 3"]  # robot on white
    depth: Float[Array, "N H W"]  # m along the optical axis (not along the ray); inf where nothing is hit
    segmentation: Int[Array, "N H W"]  # MuJoCo geom id; -1 where nothing is hit


@partial(jax.jit, static_argnames=("height", "width", "floor"))
def render(
    scene: Scene,
    geom_xpos: Float[Array, "N G 3"],
    geom_xmat: Float[Array, "N G 3 3"],
    camera: Camera,
    target: Float[Array, "N 3"],
    *,
    height: int,
    width: int,
    floor: bool = False,
) -> Frames:
    """Draws the scene once per environment.

    Args:
      scene: from `make_scene`.
      geom_xpos: world positions of all geoms of the model, m.
      geom_xmat: world orientations of all geoms of the model.
      camera: one for all environments, or one per environment (leading axis N).
      target: the followed point that the camera's position is measured from, world frame, m.
      height: image rows.
      width: image columns.
      floor: draw the floor z = 0 behind the robot. A backdrop: it has no depth and no id.

    Raises:
      ValueError: a size that is not positive.
    """
    x, y = pixel_grid(height, width)
    matrix, eye = _view(camera, target, width / height)
    prepared = _prepare(scene, geom_xpos, geom_xmat, matrix, eye)
    shape = (geom_xpos.shape[0], height, width)
    state = jnp.zeros(shape, jnp.float32), jnp.full(shape, -1, jnp.int32)
    first = 0
    for kind, surfaces in prepared:
        count, per_geom = surfaces.outside.shape[0], surfaces.outside.shape[2]
        starts = first + per_geom * jnp.arange(count, dtype=jnp.int32)
        state, _ = jax.lax.scan(partial(_nearer, kind, x, y), state, (starts, surfaces))
        first += count * per_geom
    nearest, winner = state
    hit = winner >= 0
    segmentation = jnp.where(hit, jnp.take(jnp.asarray(scene.owner), winner, mode="clip"), -1)
    along = slopes(*_seen_surface([s for _, s in prepared], winner), nearest, x, y)
    directions = _directions(matrix, x, y)
    view = -directions / jnp.linalg.norm(directions, axis=-1, keepdims=True)
    lit = shade(
        jnp.take(jnp.asarray(scene.rgb), segmentation, axis=0, mode="clip"),
        _normal(nearest, *along, matrix, x, y),
        view,
    )
    background = floor_rgb(eye, directions) if floor else jnp.ones_like(lit)
    rgb = jnp.round(255 * jnp.clip(jnp.where(hit[..., None], lit, background), 0.0, 1.0)).astype(jnp.uint8)
    depth = jnp.where(hit, 1 / jnp.where(hit, nearest, 1.0), jnp.inf)
    return Frames(rgb, depth, segmentation)


@partial(jax.jit, static_argnames=("height", "width"))
def render_masks(
    scene: Scene,
    geom_xpos: Float[Array, "N G 3"],
    geom_xmat: Float[Array, "N G 3 3"],
    camera: Camera,
    target: Float[Array, "N 3"],
    *,
    height: int,
    width: int,
) -> Bool[Array, "N H W"]:
    """Which pixels show the robot: `render(...).segmentation >= 0`, several times faster. Arguments as in `render`."""
    x, y = pixel_grid(height, width)
    matrix, eye = _view(camera, target, width / height)
    mask = jnp.zeros((geom_xpos.shape[0], height, width), bool)
    for kind, surfaces in _prepare(scene, geom_xpos, geom_xmat, matrix, eye):
        mask, _ = jax.lax.scan(lambda mask, s, kind=kind: (mask | kind.covers(s, x, y), None), mask, surfaces)
    return mask


def _view(camera: Camera, target: Array, aspect: float) -> tuple[Array, Array]:
    """Ray matrix [N, 3, 3] and camera position [N, 3] of every environment."""
    matrix = ray_matrix(camera, aspect)
    offset = camera.position if camera.position.ndim == 2 else camera.position[None]
    matrix = jnp.broadcast_to(matrix if matrix.ndim == 3 else matrix[None], (target.shape[0], 3, 3))
    return matrix, target + offset


def _prepare(scene: Scene, geom_xpos: Array, geom_xmat: Array, matrix: Array, eye: Array) -> list:
    """For each group of the scene: how it is drawn, and its surfaces with leading axes [K, N, S]."""
    prepared = []
    for group in scene.groups:
        kind = KINDS[group.kind]
        rays, origin = local_rays(geom_xpos[:, group.geom], geom_xmat[:, group.geom], matrix, eye)
        parameters = jnp.asarray(group.parameters)[None]
        surfaces = kind.prepare(rays, origin, jnp.broadcast_to(parameters, (eye.shape[0], *parameters.shape[1:])))
        prepared.append((kind, jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), surfaces)))
    return prepared


def _nearer(kind: Kind, x: Array, y: Array, state: tuple, geom: tuple) -> tuple[tuple, None]:
    """One step of the scan over geoms: keeps the inverse depth and the number of the nearest surface."""
    start, surfaces = geom
    w, seen = kind.nearest(surfaces, x, y)
    return (jnp.maximum(w, state[0]), jnp.where(w > state[0], start + seen, state[1])), None


def _seen_surface(groups: list[Surfaces], winner: Int[Array, "N H W"]) -> tuple[Array, Array]:
    """Coefficients m [N, H, W, 3] and q [N, H, W, 6] of the surface that each pixel shows."""

    def table(leaves, rows, width):
        # Filled in place: XLA's CPU backend (JAX 0.10) crashes on a gather from a concatenation that it fused.
        filled, first = jnp.zeros((winner.shape[0], rows, width)), 0
        for leaf in leaves:
            leaf = jnp.swapaxes(leaf, 0, 1).reshape(filled.shape[0], -1, filled.shape[2])
            filled = filled.at[:, first : first + leaf.shape[1]].set(leaf)
            first += leaf.shape[1]
        return filled

    def pick(rows):
        index = winner.reshape(winner.shape[0], -1, 1)
        return jnp.take_along_axis(rows, index, axis=1, mode="clip").reshape(*winner.shape, rows.shape[-1])

    # Flat kinds come last: one row of zeros stands for all their surfaces, which are many where there are meshes.
    curved = [s.square for s in groups if s.square is not None]
    counts = [s.outside.shape[0] * s.outside.shape[2] for s in groups]
    linear = table([s.linear for s in groups], sum(counts), 3)
    return pick(linear), pick(table(curved, sum(counts[: len(curved)]) + 1, 6))


def _directions(matrix: Array, x: Array, y: Array) -> Float[Array, "N H W 3"]:
    columns = matrix[:, None, None]
    return columns[..., 0] * x[..., None] + (columns[..., 1] * y[..., None] + columns[..., 2])


def _normal(w: Array, along_x: Array, along_y: Array, matrix: Array, x: Array, y: Array) -> Float[Array, "N H W 3"]:
    """Unit normals, world axes, towards the camera.

    The tangent plane is w = a x + b y + c in image space and n.p = 1 around the camera, where n.(M u) = w. So n is
    M^-T (a, b, c), up to a factor the cross products of M's columns (a left-handed basis, hence towards the camera).
    """
    right, up, forward = (matrix[:, None, None, :, i] for i in range(3))
    a, b, c = (t[..., None] for t in (along_x, along_y, w - along_x * x - along_y * y))
    normal = a * jnp.cross(up, forward) + b * jnp.cross(forward, right) + c * jnp.cross(right, up)
    return normal / jnp.maximum(jnp.linalg.norm(normal, axis=-1, keepdims=True), 1e-12)
