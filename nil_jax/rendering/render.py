"""Poses to pictures: a batched ray caster.

Axes: N environments, G geoms of the model, K geoms of one kind, H image rows, W image columns, C tiles of P x P pixels.

Only tiles that a geom can touch try it (`tiles`), and keep the nearest surface so far: work grows with what is covered,
and memory with pixels, never with pixels times geoms.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from nil_jax.rendering.camera import PRECISE, Camera, pixel_grid, ray_matrix
from nil_jax.rendering.geometry import KINDS, Surfaces, local_rays, slopes
from nil_jax.rendering.scene import Group, Scene
from nil_jax.rendering.shading import Vector, floor_rgb, shade, unit
from nil_jax.rendering.tiles import TILE, Grid, for_tiles, for_touched, touched


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
    grid = Grid(geom_xpos.shape[0], height, width)
    matrix, eye = _view(camera, target, width / height)
    shape = (grid.number, TILE, TILE)
    state = jnp.zeros(shape), jnp.full(shape, -1, jnp.int32)
    prepared = list(_prepare(scene, grid, geom_xpos, geom_xmat, matrix, eye))
    for group, surfaces, first, where in prepared:
        state = for_touched(grid, where, state, partial(_draw, grid, group, surfaces, first))
    nearest, winner = state
    tilt = nearest, nearest  # any start will do: it is read only where something is hit, and there it is overwritten
    for _, surfaces, first, where in prepared:
        tilt = for_touched(grid, where, tilt, partial(_slopes, grid, surfaces, first, *state))
    hit = winner >= 0
    segmentation = jnp.where(hit, jnp.take(jnp.asarray(scene.owner), winner, mode="clip"), -1)
    lit = partial(_lit, scene, grid, matrix, nearest, tilt, segmentation)
    rgb = for_tiles(grid, hit.any(axis=(1, 2)).astype(jnp.int32), jnp.full((*shape, 3), 255, jnp.uint8), lit)
    depth = jnp.where(hit, 1 / jnp.where(hit, nearest, 1.0), jnp.inf)
    rgb, depth, segmentation = (grid.images(part) for part in (rgb, depth, segmentation))
    if floor:
        backdrop = floor_rgb(eye, _directions(matrix, *pixel_grid(height, width)))
        rgb = jnp.where((segmentation >= 0)[..., None], rgb, _bytes(backdrop))
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
    grid = Grid(geom_xpos.shape[0], height, width)
    matrix, eye = _view(camera, target, width / height)
    mask = jnp.zeros((grid.number, TILE, TILE), bool)
    for group, surfaces, _, where in _prepare(scene, grid, geom_xpos, geom_xmat, matrix, eye):
        mask = for_touched(grid, where, mask, partial(_cover, grid, group, surfaces))
    return grid.images(mask)


def _view(camera: Camera, target: Array, aspect: float) -> tuple[Array, Array]:
    """Ray matrix [N, 3, 3] and camera position [N, 3] of every environment."""
    matrix = ray_matrix(camera, aspect)
    offset = camera.position if camera.position.ndim == 2 else camera.position[None]
    matrix = jnp.broadcast_to(matrix if matrix.ndim == 3 else matrix[None], (target.shape[0], 3, 3))
    return matrix, target + offset


def _prepare(
    scene: Scene, grid: Grid, geom_xpos: Array, geom_xmat: Array, matrix: Array, eye: Array
) -> Iterator[tuple[Group, Surfaces, int, Bool[Array, "T K"]]]:
    """Each group of the scene with its surfaces [N, K, S], the number of their first one, and the tiles it touches."""
    inverse, first = jnp.linalg.inv(matrix), 0
    for group in scene.groups:
        xpos, xmat = geom_xpos[:, group.geom], geom_xmat[:, group.geom]
        rays, origin = local_rays(xpos, xmat, matrix, eye)
        parameters = jnp.asarray(group.parameters)[None]
        parameters = jnp.broadcast_to(parameters, (grid.num_envs, *parameters.shape[1:]))
        surfaces = KINDS[group.kind].prepare(rays, origin, parameters)
        turn = jnp.einsum("nij,nkjl->nkil", inverse, xmat, precision=PRECISE)
        offset = jnp.einsum("nij,nkj->nki", inverse, xpos - eye[:, None], precision=PRECISE)
        yield group, surfaces, first, touched(grid, jnp.asarray(group.boxes), turn, offset)
        first += surfaces.outside.shape[1] * surfaces.outside.shape[2]


def _chosen(grid: Grid, surfaces: Surfaces, tiles: Array, geom: Array) -> Surfaces:
    """The surfaces of one geom for each tile, [C, S]."""
    env = grid.env(tiles)
    return jax.tree.map(lambda leaf: leaf[env, geom], surfaces)


def _draw(
    grid: Grid,
    group: Group,
    surfaces: Surfaces,
    first: int,
    part: tuple[Array, Array],
    tiles: Array,
    geom: Array,
    valid: Array,
) -> tuple[Array, Array]:
    """Inverse depth and number of the nearest surface so far, [C, P, P] each, after one more geom."""
    nearest, winner = part
    w, seen = KINDS[group.kind].nearest(_chosen(grid, surfaces, tiles, geom), *grid.pixels(tiles))
    number = first + surfaces.outside.shape[2] * geom[:, None, None] + seen
    nearer = (w > nearest) & valid[:, None, None]
    return jnp.where(nearer, w, nearest), jnp.where(nearer, number, winner)


def _cover(
    grid: Grid, group: Group, surfaces: Surfaces, mask: Array, tiles: Array, geom: Array, valid: Array
) -> Bool[Array, "C P P"]:
    covers = KINDS[group.kind].covers(_chosen(grid, surfaces, tiles, geom), *grid.pixels(tiles))
    return mask | (covers & valid[:, None, None])


def _slopes(
    grid: Grid,
    surfaces: Surfaces,
    first: int,
    nearest: Array,
    winner: Array,
    part: tuple[Array, Array],
    tiles: Array,
    geom: Array,
    valid: Array,
) -> tuple[Array, Array]:
    """How inverse depth changes along x and y, [C, P, P] each, where the pixel shows this geom."""
    mine = _chosen(grid, surfaces, tiles, geom)
    count = mine.outside.shape[1]
    which = winner[tiles] - (first + count * geom[:, None, None])
    # Selected rather than gathered: a gather of a handful of numbers per pixel costs a CPU more than all the rest.
    found = slopes(mine, which, nearest[tiles], *grid.pixels(tiles))
    shown = (which >= 0) & (which < count) & valid[:, None, None]
    return tuple(jnp.where(shown, new, old) for new, old in zip(found, part, strict=True))


def _lit(
    scene: Scene,
    grid: Grid,
    matrix: Array,
    nearest: Array,
    tilt: tuple[Array, Array],
    segmentation: Array,
    tiles: Array,
    _: Array,
) -> UInt8[Array, "C P P 3"]:
    """The colours of a chunk of tiles."""
    matrix, (x, y), geom = matrix[grid.env(tiles)], grid.pixels(tiles), segmentation[tiles]
    albedo = tuple(jnp.take(jnp.asarray(scene.rgb[:, i]), geom, mode="clip") for i in range(3))
    normal = _normal(nearest[tiles], tilt[0][tiles], tilt[1][tiles], matrix, x, y)
    view = unit(tuple(-d for d in _directions(matrix, x, y)))
    return jnp.where((geom >= 0)[..., None], _bytes(shade(albedo, normal, view)), jnp.uint8(255))


def _bytes(rgb: Vector) -> UInt8[Array, "*n 3"]:
    return jnp.stack([jnp.round(255 * jnp.clip(c, 0.0, 1.0)).astype(jnp.uint8) for c in rgb], axis=-1)


def _directions(matrix: Float[Array, "N 3 3"], x: Array, y: Array) -> Vector:
    """World directions of the rays, of length 1 along the optical axis."""
    m = matrix[:, :, :, None, None]
    return tuple(m[:, i, 0] * x + (m[:, i, 1] * y + m[:, i, 2]) for i in range(3))


def _normal(w: Array, along_x: Array, along_y: Array, matrix: Array, x: Array, y: Array) -> Vector:
    """Unit normals, world axes, towards the camera.

    The tangent plane is w = a x + b y + c in image space and n.p = 1 around the camera, where n.(M u) = w. So n is
    M^-T (a, b, c), up to a factor the cross products of M's columns (a left-handed basis, hence towards the camera).
    """
    right, up, forward = (matrix[:, :, i] for i in range(3))
    rows = [jnp.cross(up, forward), jnp.cross(forward, right), jnp.cross(right, up)]
    plane = along_x, along_y, w - along_x * x - along_y * y
    return unit(tuple(sum(r[:, i, None, None] * p for r, p in zip(rows, plane, strict=True)) for i in range(3)))
