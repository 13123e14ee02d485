"""Which geoms have to be tried where: an image is cut into tiles, and a geom is tried only in those that it can touch.

Axes: N environments, K geoms of one kind, T tiles of all environments, C tiles of a chunk, P pixels along its edge.

Shapes are static under jit, the number of tiles that a geom touches is not. So the tiles are sorted by how many geoms
touch them, and two loops with a trip count of their own run over chunks of tiles and, in each, over the geoms of the
tile that has most. What is left out is only what cannot be seen: pictures are those of trying all geoms everywhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from nil_jax.rendering.camera import PRECISE, check_size, image_plane

TILE = 16  # px
NEAR = 1e-3  # m: a geom that comes closer to the camera's plane is tried everywhere
MARGIN = 0.01  # tiles: beyond any rounding of a projected corner
CHUNK_PIXELS = {"cpu": 2**14}  # what a core's cache holds; elsewhere as many as keep the device busy
CHUNK_PIXELS_ELSEWHERE = 2**22
_CORNERS = np.stack(np.meshgrid(*[(-1.0, 1.0)] * 3, indexing="ij"), axis=-1).reshape(1, 8, 3).astype(np.float32)

Carry = TypeVar("Carry")


@dataclass(frozen=True)
class Grid:
    """The tiles of N images. An image's last row and column of tiles may reach beyond it."""

    num_envs: int
    height: int
    width: int
    tile: int = TILE  # P, px: small ones waste less, large ones amortise more

    def __post_init__(self):
        check_size(self.height, self.width)

    @property
    def shape(self) -> tuple[int, int, int]:
        """[T, P, P], the shape of all pixels."""
        return self.number, self.tile, self.tile

    @property
    def rows(self) -> int:
        """Tiles of an image, from top to bottom."""
        return -(-self.height // self.tile)

    @property
    def columns(self) -> int:
        """Tiles of an image, from left to right."""
        return -(-self.width // self.tile)

    @property
    def number(self) -> int:
        """T."""
        return self.num_envs * self.rows * self.columns

    def env(self, tiles: Int[Array, " C"]) -> Int[Array, " C"]:
        """Which environment's image a tile belongs to."""
        return tiles // (self.rows * self.columns)

    def pixels(self, tiles: Int[Array, " C"]) -> tuple[Float[Array, "C 1 P"], Float[Array, "C P 1"]]:
        """Image plane coordinates x, y of the tiles' pixels; conventions of `camera.image_plane`."""
        step = jnp.arange(self.tile)[None]
        column = (tiles % self.columns)[:, None] * self.tile + step
        row = (tiles // self.columns % self.rows)[:, None] * self.tile + step
        x, y = image_plane(column.astype(jnp.float32), row.astype(jnp.float32), self.height, self.width)
        return x[:, None, :], y[:, :, None]

    def images(self, tiles: Array) -> Array:
        """[T, P, P, ...] to [N, H, W, ...]."""
        rest = tiles.shape[3:]
        blocks = tiles.reshape(self.num_envs, self.rows, self.columns, self.tile, self.tile, *rest)
        images = jnp.swapaxes(blocks, 2, 3).reshape(
            self.num_envs, self.rows * self.tile, self.columns * self.tile, *rest
        )
        return images[:, : self.height, : self.width]


def touched(
    grid: Grid, boxes: Float[Array, "K 2 3"], turn: Float[Array, "N K 3 3"], offset: Float[Array, "N K 3"]
) -> Bool[Array, "T K"]:
    """Which tiles a geom's bounding box (middle and half edges, in its frame) may be seen in.

    `(x t, y t, t) = turn @ p + offset` takes a point p of the geom's frame to image coordinates x, y and depth t.
    """
    corners = boxes[:, :1] + boxes[:, 1:] * _CORNERS
    seen = jnp.einsum("nkij,kcj->nkci", turn, corners, precision=PRECISE) + offset[:, :, None]
    depth = seen[..., 2]
    everywhere, nowhere = depth.min(axis=-1) < NEAR, depth.max(axis=-1) < NEAR
    x, y = (seen[..., i] / jnp.maximum(depth, NEAR) for i in (0, 1))

    def span(low: Array, high: Array, number: int) -> Bool[Array, "N K tiles"]:
        tile = jnp.arange(number, dtype=jnp.float32).reshape(1, 1, number)
        inside = (tile + 1 + MARGIN >= low[..., None]) & (tile - MARGIN <= high[..., None])
        return (inside | everywhere[..., None]) & ~nowhere[..., None]

    across = (x * grid.height + grid.width / 2) / grid.tile
    down = (grid.height / 2 - y * grid.height) / grid.tile
    columns = span(across.min(axis=-1), across.max(axis=-1), grid.columns)
    rows = span(down.min(axis=-1), down.max(axis=-1), grid.rows)
    both = rows[:, :, :, None] & columns[:, :, None, :]
    return jnp.moveaxis(both, 1, 3).reshape(grid.number, boxes.shape[0])


def for_touched(
    grid: Grid,
    touched: Bool[Array, "T K"],
    images: Carry,
    visit: Callable[[Carry, Int[Array, " C"], Int[Array, " C"], Bool[Array, " C"]], Carry],
) -> Carry:
    """Runs `visit` over all pairs of a tile and a geom that touches it.

    Args:
        grid: the tiles.
        touched: which geoms touch which tiles.
        images: pytree of [T, P, P, ...].
        visit: `visit(part, tiles, geom, valid) -> part` draws one geom into each tile of a chunk; `part` holds the
            chunk's rows of `images`, and nothing is to be drawn where `valid` is False.
    """
    count = touched.sum(axis=1, dtype=jnp.int32)

    def chunk(tiles: Int[Array, " C"], part: Any) -> Any:
        mine, order = count[tiles], jnp.cumsum(touched[tiles], axis=1, dtype=jnp.int32)

        def body(carry: tuple) -> tuple:
            i, part = carry
            return i + 1, visit(part, tiles, jnp.argmax(order == i + 1, axis=1), i < mine)

        return jax.lax.while_loop(lambda carry: carry[0] < mine.max(), body, (0, part))[1]

    return for_tiles(grid, count, images, chunk)


def for_tiles(
    grid: Grid, count: Int[Array, " T"], images: Carry, update: Callable[[Int[Array, " C"], Any], Any]
) -> Carry:
    """Runs `update(tiles, part) -> part` over chunks of the tiles whose count is not 0, greatest counts first."""
    limit = CHUNK_PIXELS.get(jax.default_backend(), CHUNK_PIXELS_ELSEWHERE) // grid.tile**2
    size = min(limit, grid.number)
    order = jnp.argsort(-count)
    # The last chunk ends with tiles of the one before or with tiles that nothing touches: drawing twice does no harm.
    last = grid.number - size

    def body(carry: tuple) -> tuple:
        done, images = carry
        tiles = jax.lax.dynamic_slice(order, (jnp.minimum(done, last),), (size,))
        part = update(tiles, jax.tree.map(lambda leaf: leaf[tiles], images))
        return done + size, jax.tree.map(lambda leaf, new: leaf.at[tiles].set(new), images, part)

    active = (count > 0).sum()
    return jax.lax.while_loop(lambda carry: carry[0] < active, body, (0, images))[1]
