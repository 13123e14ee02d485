"""Triangles to samples of a picture: projection, clipping and a z-buffer, in NumPy.

Axes: F triangles, H rows and W columns of samples, R rows of all triangles, S samples of all triangles.

A triangle's corner on the picture is (column, row, nearness): samples lie at half-integer columns and rows. Nearness is
the inverse depth (the negative depth if rays are parallel): linear across the picture, and the greatest is seen.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from nil_jax.rendering.camera import Camera, check_size

NEAR = 1e-3  # m: what comes closer to the camera's plane is cut off
CHUNK = 2**21  # samples at once: bounds the memory


class View(NamedTuple):
    """A camera in numbers, for one size of picture."""

    eye: Float[np.ndarray, " 3"]  # m, world
    axes: Float[np.ndarray, "3 3"]  # rows: right, up, forward; world axes
    focal: float  # pixels (pixels per metre if orthographic)
    middle: tuple[float, float]  # column and row of the optical axis
    orthographic: bool


def make_view(camera: Camera, target: Float[np.ndarray, " 3"], height: int, width: int) -> View:
    """The view of one camera.

    Raises:
      ValueError: a batch of cameras, or a size that is not positive.
    """
    check_size(height, width)
    if np.ndim(camera.position) != 1 or np.ndim(camera.focal) != 0:
        raise ValueError(f"camera: expected one, got a batch: position of shape {np.shape(camera.position)}; index it")
    axes = np.asarray(camera.rotation, np.float64).T * [[1.0], [1.0], [-1.0]]
    center = np.asarray(camera.center, np.float64)
    return View(
        eye=np.asarray(target, np.float64) + np.asarray(camera.position, np.float64),
        axes=axes,
        focal=float(camera.focal) * height,
        middle=(float(center[0]) * width, float(center[1]) * height),
        orthographic=camera.orthographic,
    )


def depths(view: View, points: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n"]:
    """Depth along the optical axis, m."""
    return (points - view.eye) @ view.axes[2]


def project(view: View, points: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
    """Column, row and nearness of points in front of the camera."""
    x, y, z = np.moveaxis(points - view.eye, -1, 0)  # no matrix product: slow for an axis of three
    right, up, depth = (axis[0] * x + axis[1] * y + axis[2] * z for axis in view.axes)
    scale = np.full_like(depth, view.focal) if view.orthographic else view.focal / depth
    nearness = -depth if view.orthographic else 1 / depth
    return np.stack([view.middle[0] + scale * right, view.middle[1] - scale * up, nearness], axis=-1)


def rays(view: View, columns: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the rays of samples start, and which way they go (1 m deep); [3, n] each, m, world axes."""
    right, up = (columns - view.middle[0]) / view.focal, (view.middle[1] - rows) / view.focal
    across = right * view.axes[0][:, None] + up * view.axes[1][:, None]
    eye, forward = view.eye[:, None], view.axes[2][:, None]
    if view.orthographic:
        return eye + across, np.broadcast_to(forward, across.shape)
    return np.broadcast_to(eye, across.shape), across + forward


def clipped(values: Float[np.ndarray, "F 3 C"], depth: Float[np.ndarray, "F 3"]) -> tuple[np.ndarray, np.ndarray]:
    """The parts of triangles that lie deeper than `NEAR`: values at their corners, and whose parts they are.

    Args:
      values: whatever is linear across a triangle, at its corners.
      depth: of the corners, m.
    """
    front = depth > NEAR
    count = front.sum(axis=1)
    whole, one, two = (np.flatnonzero(count == number) for number in (3, 1, 2))
    # Turned so that the corner that stands alone on its side comes first.
    lone = np.concatenate([front[one].argmax(axis=1), (~front[two]).argmax(axis=1)])
    order = (lone[:, None] + np.arange(3)) % 3
    cut = np.concatenate([one, two])
    turned, deep = values[cut[:, None], order], depth[cut[:, None], order]
    part = ((deep[:, :1] - NEAR) / (deep[:, :1] - deep[:, 1:]))[..., None]
    crossing = turned[:, :1] + part * (turned[:, 1:] - turned[:, :1])  # [cut, 2, C] on the edges to the lone corner
    first, rest = slice(None, len(one)), slice(len(one), None)
    tips = np.concatenate([turned[first, :1], crossing[first]], axis=1)
    b, c, on_b, on_c = turned[rest, 1], turned[rest, 2], crossing[rest, 0], crossing[rest, 1]
    stumps = np.concatenate([np.stack([on_b, b, c], axis=1), np.stack([on_b, c, on_c], axis=1)])
    return np.concatenate([values[whole], tips, stumps]), np.concatenate([whole, one, two, two])


def rasterise(
    corners: Float[np.ndarray, "F 3 3"], height: int, width: int, top: int = 0
) -> tuple[Float[np.ndarray, "H W"], Int[np.ndarray, "H W"]]:
    """Which triangle is seen where.

    Args:
      corners: column, row, nearness.
      height: rows of the result.
      width: columns of the result.
      top: the picture's row that is the first of the result.

    Returns:
      Nearness (-inf where nothing is seen) and number of the triangle (-1), float32 and int32.
    """
    nearest, winner = np.full(height * width, -np.inf, np.float32), np.full(height * width, -1, np.int32)
    for pixel, nearness, triangle in _samples(corners - [0.0, float(top), 0.0], height, width):
        np.maximum.at(nearest, pixel, nearness)
        seen = nearness == nearest[pixel]
        winner[pixel[seen]] = triangle[seen]
    return nearest.reshape(height, width), winner.reshape(height, width)


def _samples(corners: np.ndarray, height: int, width: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pixel, nearness and triangle of the samples that lie in triangles, in chunks."""
    slope, low, high = _slopes(corners), corners[..., 2].min(axis=1), corners[..., 2].max(axis=1)
    triangle, row, first, count = _spans(corners, height, width)
    total = np.cumsum(count)
    cuts = np.searchsorted(total, np.arange(CHUNK, count.sum(), CHUNK))
    for begin, end in zip([0, *cuts], [*cuts, len(total)], strict=True):
        mine, x, y, number = triangle[begin:end], first[begin:end], row[begin:end], count[begin:end]
        origin = corners[mine, 0]
        start = origin[:, 2] + slope[mine, 0] * (x + 0.5 - origin[:, 0]) + slope[mine, 1] * (y + 0.5 - origin[:, 1])
        offset = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number)
        owner = np.repeat(mine, number)
        nearness = np.repeat(start, number) + slope[owner, 0] * offset
        nearness = np.clip(nearness, low[owner], high[owner])  # a sliver's slopes are not to be relied on
        yield np.repeat(y * width + x, number) + offset, nearness.astype(np.float32), owner.astype(np.int32)


def _slopes(corners: np.ndarray) -> Float[np.ndarray, "F 2"]:
    """How nearness changes from column to column and from row to row."""
    (x1, y1, k1), (x2, y2, k2) = (np.moveaxis(corners[:, i] - corners[:, 0], -1, 0) for i in (1, 2))
    area = x1 * y2 - x2 * y1
    inverse = np.divide(1.0, area, out=np.zeros_like(area), where=area != 0)
    return np.stack([k1 * y2 - k2 * y1, x1 * k2 - x2 * k1], axis=-1) * inverse[:, None]


def _spans(corners: np.ndarray, height: int, width: int) -> tuple[np.ndarray, ...]:
    """Triangle, row, first column and number of samples [R] of every row of samples in a triangle.

    Where an edge crosses a row follows from its upper and lower end alone: two triangles that share it leave no gap.
    """
    by_row = np.argsort(corners[..., 1], axis=1)
    columns, rows = (np.take_along_axis(corners[..., i], by_row, axis=1) for i in (0, 1))
    begin = np.clip(np.ceil(rows[:, 0] - 0.5), 0, height).astype(np.int64)
    end = np.clip(np.floor(rows[:, 2] - 0.5) + 1, 0, height).astype(np.int64)
    number = np.maximum(end - begin, 0)
    triangle = np.repeat(np.arange(len(corners)), number)
    row = np.arange(len(triangle)) - np.repeat(np.cumsum(number) - number - begin, number)
    y = row + 0.5

    def crossing(upper: np.ndarray | int, lower: np.ndarray | int) -> np.ndarray:
        x0, y0, x1, y1 = (
            columns[triangle, upper],
            rows[triangle, upper],
            columns[triangle, lower],
            rows[triangle, lower],
        )
        rise = y1 - y0
        return x0 + (y - y0) * np.divide(x1 - x0, rise, out=np.zeros_like(rise), where=rise != 0)

    above = y < rows[triangle, 1]
    long, short = crossing(0, 2), crossing(np.where(above, 0, 1), np.where(above, 1, 2))
    first = np.clip(np.ceil(np.minimum(long, short) - 0.5), 0, width).astype(np.int64)
    last = np.clip(np.floor(np.maximum(long, short) - 0.5) + 1, 0, width).astype(np.int64)
    some = last > first
    return triangle[some], row[some], first[some], (last - first)[some]


def weights(
    view: View, corners: Float[np.ndarray, "S 3 3"], columns: Float[np.ndarray, " S"], rows: Float[np.ndarray, " S"]
) -> Float[np.ndarray, "3 S"]:
    """Shares of a triangle's three corners in what is seen at one sample of it; they sum to 1."""
    x, y, nearness = np.moveaxis(corners, -1, 0)
    x, y = x - columns[:, None], y - rows[:, None]
    share = np.stack([x[:, i] * y[:, j] - x[:, j] * y[:, i] for i, j in ((1, 2), (2, 0), (0, 1))])
    total = share.sum(axis=0)
    share = np.clip(np.divide(share, total, out=np.full_like(share, 1 / 3), where=total != 0), 0, 1)
    if not view.orthographic:
        share *= nearness.T
    return share / share.sum(axis=0)
