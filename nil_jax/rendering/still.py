"""One good picture of a robot: exact meshes, textures, the lights of the MJCF, shadows and smooth edges, in NumPy.

Axes: F triangles, H rows and W columns of pixels, S samples that show something.

For pictures that people and video models look at. `render` is the one for training: thousands at once, and plain.
"""

from collections.abc import Sequence
from typing import NamedTuple

import mujoco
import numpy as np
from jaxtyping import Float, Int, UInt8

from nil_jax.rendering import backdrop, raster
from nil_jax.rendering.camera import Camera
from nil_jax.rendering.lamps import Lamp, illuminate, make_lamps, with_shadow
from nil_jax.rendering.materials import OPAQUE, Materials, Texture, make_materials
from nil_jax.rendering.raster import View
from nil_jax.rendering.scene import drawn_geoms
from nil_jax.rendering.triangles import Triangles, make_triangles

SAMPLES = 4  # across a pixel: anti-aliasing
SILHOUETTE = 0.05  # px: how far a tessellated primitive's outline may be from the true one
NEAREST = 0.01  # m: nearer geoms are no finer than from there
BAND = 64  # px: rows drawn at once, which bounds the memory
CHUNK = 2**16  # samples shaded at once: what a core's cache holds


def still(
    mj_model: mujoco.MjModel,
    qpos: Float[np.ndarray, " nq"],
    camera: Camera,
    target: Float[np.ndarray, " 3"],
    *,
    height: int,
    width: int,
    geom_ids: Sequence[int] | np.ndarray | None = None,
    floor: bool = False,
    brightest: float = 1.0,
) -> UInt8[np.ndarray, "H W 3"]:
    """Draws a model once, on white. Seconds rather than milliseconds, but nothing is compiled.

    Args:
      mj_model: compiled model.
      qpos: its pose.
      camera: one, not a batch.
      target: the followed point that the camera's position is measured from, world frame, m.
      height: image rows.
      width: image columns.
      geom_ids: draw only these. Default: as in `make_scene`.
      floor: draw the floor z = 0 with a soft shadow of the robot. A backdrop: it hides nothing.
      brightest: in (0.5, 1]. What the brightest surface comes near to; darker ones than `2 brightest - 1` stay as they
        are. At 1 highlights are cut off, as in MuJoCo's renderer; below, they keep their shape, and a white robot
        stands out from the background.

    Raises:
      ValueError: a geom that cannot be drawn, an id outside the model, a pose of another size, a batch of cameras, a
        size that is not positive, or `brightest` out of range.
    """
    if not 0.5 < brightest <= 1:
        raise ValueError(f"brightest: expected a number in (0.5, 1], got {brightest}")
    view = raster.make_view(camera, target, height * SAMPLES, width * SAMPLES)
    drawing = _prepare(mj_model, _posed(mj_model, qpos), view, drawn_geoms(mj_model, geom_ids), brightest)
    shadow = backdrop.contact_shadow(drawing.surface.position) if floor else None
    bands = [_band(drawing, top, min(BAND, height - top), width, shadow) for top in range(0, height, BAND)]
    return np.concatenate(bands)


class _Drawing(NamedTuple):
    """All that a part of the picture needs."""

    view: View  # in samples
    surface: Triangles  # in front of the camera
    corners: Float[np.ndarray, "F 3 3"]  # column, row, nearness
    rows: Float[np.ndarray, "2 F"]  # the first and the last row that a triangle may touch
    flat: Float[np.ndarray, "F 3"]  # normals of the triangles themselves, on the side that is seen
    layers: list[np.ndarray]  # triangles that are drawn together: the opaque ones, then see-through geoms from behind
    materials: Materials
    textures: dict[int, Texture]
    level: Float[np.ndarray, " F"]  # size of texture to use: 0 is the finest, each further one half as large
    lamps: list[Lamp]
    brightest: float


def _posed(mj_model: mujoco.MjModel, qpos: np.ndarray) -> mujoco.MjData:
    if np.shape(qpos) != (mj_model.nq,):
        raise ValueError(f"qpos: expected the model's {mj_model.nq} numbers, got shape {np.shape(qpos)}; pass one pose")
    data = mujoco.MjData(mj_model)
    data.qpos[:] = qpos
    mujoco.mj_kinematics(mj_model, data)
    mujoco.mj_comPos(mj_model, data)
    mujoco.mj_camlight(mj_model, data)
    return data


def _prepare(
    mj_model: mujoco.MjModel, data: mujoco.MjData, view: View, geom_ids: np.ndarray, brightest: float
) -> _Drawing:
    materials = make_materials(mj_model)
    surface = _surface(mj_model, data, view, geom_ids)
    alpha = materials.rgba[surface.geom, 3]
    # What is endless is never between a lamp and the robot, and a shadow's map would have to hold all of it.
    endless = mj_model.geom_type[surface.geom] == mujoco.mjtGeom.mjGEOM_PLANE
    casting = surface.position[(alpha >= OPAQUE) & ~endless]
    lamps = make_lamps(mj_model, data, view)
    if len(casting):
        lamps = [with_shadow(lamp, casting) if lamp.casts else lamp for lamp in lamps]
    depth = raster.depths(view, surface.position)
    values, source = raster.clipped(np.concatenate(surface[:3], axis=-1), depth)
    position, normal, texture = np.split(values, 3, axis=-1)
    surface = Triangles(position, normal, texture, surface.geom[source])
    corners = raster.project(view, surface.position)
    textures = {t: Texture(mj_model, t) for t in np.unique(materials.texture[geom_ids]).tolist() if t >= 0}
    level = _levels(surface, corners, materials, textures)
    return _Drawing(
        view,
        surface,
        corners,
        np.stack([corners[..., 1].min(axis=1), corners[..., 1].max(axis=1)]),
        _flat(view, surface.position),
        _layers(view, surface, materials),
        materials,
        textures,
        level,
        lamps,
        brightest,
    )


def _surface(mj_model: mujoco.MjModel, data: mujoco.MjData, view: View, geom_ids: np.ndarray) -> Triangles:
    """Triangles fine enough for the geom that is nearest to the camera, of those that it sees."""
    pixel = SAMPLES / view.focal  # m, or m at 1 m
    if not view.orthographic:
        depth, radius = raster.depths(view, data.geom_xpos[geom_ids]), mj_model.geom_rbound[geom_ids]
        pixel *= max(float((depth - radius).min(initial=np.inf, where=depth + radius > 0)), NEAREST)
    xmat = data.geom_xmat.reshape(-1, 3, 3)
    return make_triangles(mj_model, geom_ids, data.geom_xpos, xmat, SILHOUETTE * pixel)


def _flat(view: View, corners: Float[np.ndarray, "F 3 3"]) -> Float[np.ndarray, "F 3"]:
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    forward = view.axes[2] if view.orthographic else corners[:, 0] - view.eye
    return np.where(np.sum(normal * forward, axis=-1, keepdims=True) > 0, -normal, normal)


def _layers(view: View, surface: Triangles, materials: Materials) -> list[np.ndarray]:
    glass = [geom for geom in np.unique(surface.geom) if materials.rgba[geom, 3] < OPAQUE]
    depth = [raster.depths(view, surface.position[surface.geom == geom]).min() for geom in glass]
    behind = [glass[i] for i in np.argsort(depth)[::-1]]
    solid = np.flatnonzero(~np.isin(surface.geom, glass))
    return [solid, *(np.flatnonzero(surface.geom == geom) for geom in behind)]


def _levels(
    surface: Triangles, corners: np.ndarray, materials: Materials, textures: dict[int, Texture]
) -> Float[np.ndarray, " F"]:
    """Each triangle's texture at the size at which its pixels are about as large as the samples."""
    level = np.zeros(len(corners), np.float32)
    a, b = (corners[:, i, :2] - corners[:, 0, :2] for i in (1, 2))
    area = np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]) / 2
    for number, texture in textures.items():
        mine = np.flatnonzero(materials.texture[surface.geom] == number)
        ratio = texture.texels(surface.texture[mine]) / np.maximum(area[mine], 1e-6)
        level[mine] = 0.5 * np.log2(np.maximum(ratio, 1.0))
    return level


def _band(
    drawing: _Drawing, top: int, rows: int, width: int, shadow: backdrop.ContactShadow | None
) -> UInt8[np.ndarray, "H W 3"]:
    """Some rows of the picture."""
    first, height, across = top * SAMPLES, rows * SAMPLES, width * SAMPLES
    colour = np.ones((3, height * across), np.float32)
    if shadow is not None:
        column, row = (c.ravel() + 0.5 for c in np.meshgrid(np.arange(across), np.arange(first, first + height)))
        colour[:] = backdrop.floor_grey(drawing.view, shadow, column, row)
    nearest = np.full((height, across), -np.inf, np.float32)
    reached = (drawing.rows[1] >= first) & (drawing.rows[0] <= first + height)
    for number, layer in enumerate(drawing.layers):
        mine = layer[reached[layer]]
        nearness, winner = raster.rasterise(drawing.corners[mine], height, across, first)
        seen = np.flatnonzero(nearness > nearest)
        for part in np.array_split(seen, len(seen) // CHUNK + 1):
            column, row = part % across + 0.5, part // across + first + 0.5
            shaded, alpha = _shade(drawing, mine[winner.ravel()[part]], column, row)
            colour[:, part] += alpha * (shaded - colour[:, part])
        if number == 0:
            nearest = nearness
    grid = colour.reshape(3, height, across)
    pixels = sum(grid[:, i::SAMPLES, j::SAMPLES] for i in range(SAMPLES) for j in range(SAMPLES)) / SAMPLES**2
    return np.moveaxis(np.round(255 * pixels).astype(np.uint8), 0, -1)


def _shade(
    drawing: _Drawing, triangle: Int[np.ndarray, " S"], column: np.ndarray, row: np.ndarray
) -> tuple[Float[np.ndarray, "3 S"], Float[np.ndarray, " S"]]:
    """Colours and opacities, in [0, 1], of samples that show a triangle."""
    view, surface, materials = drawing.view, drawing.surface, drawing.materials
    share = raster.weights(view, drawing.corners[triangle], column, row)
    point, normal, coordinates = (np.einsum("cs,sci->is", share, values[triangle]) for values in surface[:3])
    normal *= np.where(np.einsum("is,si->s", normal, drawing.flat[triangle]) < 0, -1, 1)
    normal /= np.maximum(np.linalg.norm(normal, axis=0), 1e-12)
    _, along = raster.rays(view, column, row)
    to_eye = -along / np.linalg.norm(along, axis=0)
    geom = surface.geom[triangle]
    matt, gloss = illuminate(drawing.lamps, point, normal, to_eye, materials.exponent[geom])
    colour = materials.rgba[geom, :3].T * (matt + materials.emission[geom]) + materials.specular[geom] * gloss
    for number, texture in drawing.textures.items():
        mine = materials.texture[geom] == number
        if mine.any():
            colour[:, mine] *= texture.colours(coordinates[:, mine], drawing.level[triangle][mine])
    return _rolled_off(colour, drawing.brightest), materials.rgba[geom, 3]


def _rolled_off(colour: Float[np.ndarray, "3 S"], brightest: float) -> Float[np.ndarray, "3 S"]:
    """Light above the knee bent smoothly towards `brightest`, its hue kept; at 1 cut off, as in OpenGL."""
    if brightest == 1:
        return np.clip(colour, 0, 1)
    span, peak = 1 - brightest, np.maximum(colour.max(axis=0), 1e-6)
    knee = brightest - span
    bent = np.where(peak > knee, brightest - span * np.exp(-(peak - knee) / span), peak)
    return colour * (bent / peak)
