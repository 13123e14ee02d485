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

from nil_jax.rendering.camera import PRECISE, Camera, depth_of, lens
from nil_jax.rendering.geometry import KINDS, Seen, Surfaces, either, local_lens
from nil_jax.rendering.scene import Group, Scene
from nil_jax.rendering.shading import BRIGHTEST, Vector, shade, unit
from nil_jax.rendering.tiles import TILE, Grid, for_tiles, for_touched, touched

SMALL_TILE, SMALL_IMAGE = 8, 96  # px: where colours are drawn in smaller tiles


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Frames:
    """Pictures of N environments."""

    rgb: UInt8[Array, "N H W 3"]  # robot on white
    depth: Float[Array, "N H W"]  # m along the optical axis (not along the ray); inf where nothing is hit
    segmentation: Int[Array, "N H W"]  # MuJoCo geom id; -1 where nothing is hit


@partial(jax.jit, static_argnames=("height", "width"))
def render(
    scene: Scene,
    geom_xpos: Float[Array, "N G 3"],
    geom_xmat: Float[Array, "N G 3 3"],
    camera: Camera,
    target: Float[Array, "N 3"],
    *,
    height: int,
    width: int,
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

    Raises:
      ValueError: a size that is not positive.
    """
    grid = Grid(geom_xpos.shape[0], height, width, SMALL_TILE if max(height, width) <= SMALL_IMAGE else TILE)
    matrix = _lens(camera, grid)
    blank = jnp.zeros(grid.shape)
    state = Seen(blank, blank, blank), jnp.full(grid.shape, -1, jnp.int32)
    inverse = jnp.linalg.inv(matrix)
    for group, surfaces, where in _prepare(scene, grid, geom_xpos - target[:, None], geom_xmat, matrix, inverse):
        state = for_touched(grid, where, state, partial(_draw, grid, group, surfaces))
    seen, segmentation = state
    hit = segmentation >= 0
    lit = partial(_lit, scene, grid, matrix, inverse, seen, segmentation)
    white = (jnp.full(grid.shape, 255, jnp.uint8),) * 3
    rgb = for_tiles(grid, hit.any(axis=(1, 2)).astype(jnp.int32), white, lit)
    depth = jnp.where(hit, depth_of(camera, jnp.where(hit, seen.nearness, 1.0)), jnp.inf)
    rgb = jnp.stack([grid.images(part) for part in rgb], axis=-1)
    depth, segmentation = grid.images(depth), grid.images(segmentation)
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
    matrix, mask = _lens(camera, grid), jnp.zeros(grid.shape, bool)
    inverse = jnp.linalg.inv(matrix)
    for group, surfaces, where in _prepare(scene, grid, geom_xpos - target[:, None], geom_xmat, matrix, inverse):
        mask = for_touched(grid, where, mask, partial(_cover, grid, group, surfaces))
    return grid.images(mask)


def _lens(camera: Camera, grid: Grid) -> Float[Array, "N 4 4"]:
    matrix = lens(camera, grid.width / grid.height)
    return jnp.broadcast_to(matrix if matrix.ndim == 3 else matrix[None], (grid.num_envs, 4, 4))


def _prepare(
    scene: Scene, grid: Grid, geom_xpos: Array, geom_xmat: Array, matrix: Array, inverse: Array
) -> Iterator[tuple[Group, Surfaces, Bool[Array, "T K"]]]:
    """Each group of the scene with its surfaces [N, K, S] and the tiles it touches.

    `geom_xpos` is around the followed point: numbers stay small, and exact, however far a robot has walked.
    """
    for group in scene.groups:
        xpos, xmat = geom_xpos[:, group.geom], geom_xmat[:, group.geom]
        parameters = jnp.asarray(group.parameters)[None]
        parameters = jnp.broadcast_to(parameters, (grid.num_envs, *parameters.shape[1:]))
        surfaces = KINDS[group.kind].prepare(local_lens(matrix, xpos, xmat), parameters)
        turn = jnp.einsum("nij,nkjl->nkil", inverse[:, :3, :3], xmat, precision=PRECISE)
        offset = jnp.einsum("nij,nkj->nki", inverse[:, :3, :3], xpos, precision=PRECISE) + inverse[:, None, :3, 3]
        yield group, surfaces, touched(grid, jnp.asarray(group.boxes), turn, offset)


def _chosen(grid: Grid, surfaces: Surfaces, tiles: Array, geom: Array) -> Surfaces:
    """The surfaces of one geom for each tile, [C, S]."""
    env = grid.env(tiles)
    return jax.tree.map(lambda leaf: leaf[env, geom], surfaces)


def _draw(
    grid: Grid,
    group: Group,
    surfaces: Surfaces,
    part: tuple[Seen, Array],
    tiles: Array,
    geom: Array,
    valid: Array,
) -> tuple[Seen, Array]:
    """What is nearest so far, and the id of its geom, [C, P, P] each, after one more geom."""
    nearest, owner = part
    seen = KINDS[group.kind].look(_chosen(grid, surfaces, tiles, geom), *grid.pixels(tiles))
    nearer = (seen.nearness > nearest.nearness) & valid[:, None, None]
    number = jnp.asarray(group.geom)[geom][:, None, None]
    return either(nearer, seen, nearest), jnp.where(nearer, number, owner)


def _cover(
    grid: Grid, group: Group, surfaces: Surfaces, mask: Array, tiles: Array, geom: Array, valid: Array
) -> Bool[Array, "C P P"]:
    covers = KINDS[group.kind].covers(_chosen(grid, surfaces, tiles, geom), *grid.pixels(tiles))
    return mask | (covers & valid[:, None, None])


def _lit(
    scene: Scene, grid: Grid, matrix: Array, inverse: Array, seen: Seen, owner: Array, tiles: Array, _: Vector
) -> Vector:
    """The colours of a chunk of tiles, a byte each."""
    env, (x, y), geom = grid.env(tiles), grid.pixels(tiles), owner[tiles]
    albedo = tuple(jnp.take(jnp.asarray(scene.rgb[:, i]), geom, mode="clip") for i in range(3))
    normal = _normal(Seen(*(part[tiles] for part in seen)), inverse[env], x, y)
    colour = shade(albedo, normal, unit(_towards_camera(matrix[env], x, y)))
    return tuple(jnp.where(geom >= 0, _byte(c), jnp.uint8(255)) for c in colour)


def _byte(c: Array) -> UInt8[Array, "..."]:
    return jnp.round(255 * jnp.clip(c, 0.0, BRIGHTEST)).astype(jnp.uint8)


def _towards_camera(matrix: Float[Array, "N 4 4"], x: Array, y: Array) -> Vector:
    """World directions from a point seen at x, y towards the camera: how P / s moves with w (quotient rule)."""
    (b, e), (rays, origin) = ((matrix[:, rows, :3], matrix[:, rows, 3:]) for rows in (slice(3, 4), slice(0, 3)))
    m = (origin * b - e * rays)[..., None, None]
    return tuple(m[:, i, 0] * x + (m[:, i, 1] * y + m[:, i, 2]) for i in range(3))


def _normal(seen: Seen, inverse: Float[Array, "C 4 4"], x: Array, y: Array) -> Vector:
    """Unit normals, world axes, towards the camera.

    The tangent plane is a x + b y + c - w = 0 in image space, so (a, b, c, -1) times the lens's inverse in the world.
    """
    inverse, (w, a, b) = inverse[..., None, None], seen
    plane = a, b, w - a * x - b * y
    return unit(tuple(inverse[:, 3, i] - sum(inverse[:, j, i] * p for j, p in enumerate(plane)) for i in range(3)))
