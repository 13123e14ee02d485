"""What is behind the robot: white, or a pale floor with the soft shadow of what stands on it.

Axes: S samples, F triangles, M edge of the map of heights.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from nil_jax.rendering.camera import Camera
from nil_jax.rendering.raster import View, make_view, project, rasterise, rays

FLOOR_TILE = 0.5  # m
FLOOR_RGB = (0.86, 0.80)  # grey of the two kinds of tile
FLOOR_FADE = 0.08  # 1/m^2: how fast the floor turns into the white background with the distance from the camera
SHADOW_SIZE = 512  # M
SHADOWS = ((0.02, 0.40), (0.10, 0.30), (0.40, 0.20))  # reach (m) and darkness: close to the floor it is sharp and dark
MARGIN = 0.5  # m around the triangles
FADED = 6.0  # the exponent of the fade from which on the floor is white


class ContactShadow(NamedTuple):
    """How much darker the floor is around and below what stands on it."""

    view: View  # from below
    darkness: Float[np.ndarray, "M M"]  # in [0, 1]


def contact_shadow(corners: Float[np.ndarray, "F 3 3"]) -> ContactShadow:
    """The shadow of triangles on the floor z = 0 under an overcast sky: the lower a surface, the darker below it."""
    low, high = corners.min(axis=(0, 1)) - MARGIN, corners.max(axis=(0, 1)) + MARGIN
    edge = float((high - low)[:2].max())
    camera = Camera(
        position=np.array([*(low + high)[:2] / 2, min(low[2], 0.0)]),
        rotation=np.array([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, -1.0]]),
        focal=np.float64(1 / edge),
        center=np.full(2, 0.5),
        orthographic=True,
    )
    view = make_view(camera, np.zeros(3), SHADOW_SIZE, SHADOW_SIZE)
    nearness, _ = rasterise(project(view, corners), SHADOW_SIZE, SHADOW_SIZE)
    height = np.maximum(-nearness + view.eye[2], 0.0)  # inf where there is nothing above
    light = np.ones_like(height)
    for reach, darkness in SHADOWS:
        light *= 1 - darkness * ndimage.gaussian_filter(np.exp(-height / reach), reach / 2 * view.focal)
    return ContactShadow(view, 1 - light)


def floor_grey(
    view: View, shadow: ContactShadow, columns: Float[np.ndarray, " S"], rows: Float[np.ndarray, " S"]
) -> Float[np.ndarray, " S"]:
    """The floor z = 0 as a pale checkerboard that fades into white, with a shadow on it."""
    start, along = rays(view, columns, rows)
    below = (along[2] < -1e-6) & (start[2] > 0)
    depth = start[2] / np.where(below, -along[2], 1.0)
    x, y = start[:2] + depth * along[:2]
    faded = FLOOR_FADE * (np.square(x - view.eye[0]) + np.square(y - view.eye[1]))
    seen = np.flatnonzero(below & (faded < FADED))
    x, y, grey = x[seen], y[seen], np.ones(len(columns), np.float32)
    tile = np.floor(x / FLOOR_TILE) + np.floor(y / FLOOR_TILE)
    pale = 1 - np.exp(-faded[seen]) * (1 - np.where(tile % 2 < 1, *FLOOR_RGB))
    column, row, _ = project(shadow.view, np.stack([x, y, np.zeros_like(x)], axis=-1)).T
    dark = ndimage.map_coordinates(shadow.darkness, [row - 0.5, column - 0.5], order=1, mode="constant")
    grey[seen] = pale * (1 - dark)
    return grey
