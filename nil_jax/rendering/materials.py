"""What the surfaces of a MuJoCo model are made of: colours and textures.

Axes: G geoms of the model, S samples, L sides of a texture (1, or 6 of a cube), H rows, W columns.
"""

from functools import cached_property
from typing import NamedTuple

import mujoco
import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from nil_jax.rendering.scene import geom_rgba
from nil_jax.rendering.triangles import texture_id

PLAIN = 0.0, 0.5, 0.5  # emission, specular, shininess of a geom without a material: MuJoCo's default
SHINIEST = 128  # the exponent at shininess 1, as in OpenGL
OPAQUE = 0.995  # alpha from which on MuJoCo takes a geom for opaque
# For the sides +x, -x, +y, -y, +z, -z of a cube: axis and sign of the columns' and of the rows' direction (OpenGL).
_SIDES = ((2, -1, 1, -1), (2, 1, 1, -1), (0, 1, 2, 1), (0, 1, 2, -1), (0, 1, 1, -1), (0, -1, 1, -1))


class Materials(NamedTuple):
    """One row per geom."""

    rgba: Float[np.ndarray, "G 4"]  # in [0, 1]
    emission: Float[np.ndarray, " G"]  # share of the colour that shines by itself
    specular: Float[np.ndarray, " G"]  # strength of highlights
    exponent: Float[np.ndarray, " G"]  # sharpness of highlights
    texture: Int[np.ndarray, " G"]  # -1: none


def make_materials(mj_model: mujoco.MjModel) -> Materials:
    """The materials of all geoms."""
    material = mj_model.geom_matid
    tables = (mj_model.mat_emission, mj_model.mat_specular, mj_model.mat_shininess)
    emission, specular, shininess = (
        np.where(material >= 0, np.append(table, 0.0)[material], plain)
        for table, plain in zip(tables, PLAIN, strict=True)
    )
    texture = np.array([texture_id(mj_model, geom) for geom in range(mj_model.ngeom)], np.int32)
    return Materials(geom_rgba(mj_model), emission, specular, SHINIEST * shininess, texture)


class Texture:
    """A texture at all its sizes: each half as large as the one before, so that a distant one does not flicker."""

    def __init__(self, mj_model: mujoco.MjModel, texture: int):
        height, width, channels = (
            int(table[texture]) for table in (mj_model.tex_height, mj_model.tex_width, mj_model.tex_nchannel)
        )
        start = int(mj_model.tex_adr[texture])
        pixels = np.array(mj_model.tex_data[start : start + height * width * channels])
        self.is_cube = mj_model.tex_type[texture] != mujoco.mjtTexture.mjTEXTURE_2D
        sides = height // width if self.is_cube else 1
        self.finest: UInt8[np.ndarray, "L H W 3"] = pixels.reshape(sides, height // sides, width, channels)[..., :3]

    @cached_property
    def levels(self) -> list[Float[np.ndarray, "L H W 3"]]:
        """From the finest to the coarsest."""
        _, height, width, _ = self.finest.shape
        levels = []
        while True:
            sides = [Image.fromarray(side).resize((width, height), Image.Resampling.BOX) for side in self.finest]
            levels.append(np.stack([np.asarray(side, np.float32) / 255 for side in sides]))
            if height == width == 1:
                return levels
            height, width = max(1, height // 2), max(1, width // 2)

    def texels(self, coordinates: Float[np.ndarray, "F 3 3"]) -> Float[np.ndarray, " F"]:
        """Area of triangles, given by the coordinates of their corners, in pixels of the finest level."""
        _, height, width, _ = self.finest.shape
        if self.is_cube:  # a side spans 2 at distance 1
            scale = np.array([width / 2] * 3)
            length = np.maximum(np.linalg.norm(coordinates, axis=-1, keepdims=True), 1e-12)
            coordinates = coordinates / length
        else:
            scale = np.array([width, height, 0])
        a, b = ((coordinates[:, i] - coordinates[:, 0]) * scale for i in (1, 2))
        return np.linalg.norm(np.cross(a, b), axis=-1) / 2

    def colours(
        self, coordinates: Float[np.ndarray, "3 S"], level: Float[np.ndarray, " S"]
    ) -> Float[np.ndarray, "3 S"]:
        """Colours at (s, t, any) or in directions from the cube's middle, from the nearest level."""
        result = np.empty_like(coordinates)
        level = np.clip(np.round(level), 0, len(self.levels) - 1)
        for number in np.unique(level):
            mine = level == number
            result[:, mine] = self._bilinear(self.levels[int(number)], coordinates[:, mine])
        return result

    def _bilinear(self, image: np.ndarray, coordinates: np.ndarray) -> Float[np.ndarray, "3 S"]:
        sides, height, width, _ = image.shape
        side, s, t = _on_cube(coordinates) if self.is_cube else (0, coordinates[0], coordinates[1])
        x, y = s * width - 0.5, t * height - 0.5
        left, up = np.floor(x), np.floor(y)
        result = np.zeros((len(s), 3), image.dtype)
        for row, in_row in ((up, 1 - (y - up)), (up + 1, y - up)):
            for column, in_column in ((left, 1 - (x - left)), (left + 1, x - left)):
                if self.is_cube:
                    i, j = np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)
                else:
                    i, j = row % height, column % width
                found = image[side % sides, i.astype(int), j.astype(int)]
                result += found * (in_row * in_column)[:, None]
        return result.T


def _on_cube(direction: Float[np.ndarray, "3 S"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Side, and position on it in [0, 1] to the right and down."""
    axis = np.abs(direction).argmax(axis=0)
    longest = np.take_along_axis(direction, axis[None], axis=0)[0]
    side = 2 * axis + (longest < 0)
    across, across_sign, down, down_sign = np.array(_SIDES)[side].T
    length = 2 * np.maximum(np.abs(longest), 1e-12)
    s = 0.5 + across_sign * np.take_along_axis(direction, across[None], axis=0)[0] / length
    t = 0.5 + down_sign * np.take_along_axis(direction, down[None], axis=0)[0] / length
    return side, s, t
