"""The lights of a MuJoCo model, the shadows that they cast, and how a surface answers them (Blinn and Phong).

Axes: S points, F triangles, M edge of a shadow map in texels. Points and directions are in world axes.
"""

from typing import NamedTuple

import mujoco
import numpy as np
from jaxtyping import Float

from nil_jax.rendering.camera import Camera
from nil_jax.rendering.raster import NEAR, View, clipped, depths, make_view, project, rasterise
from nil_jax.rendering.shading import AMBIENT, HEAD, LAMP, LAMP_DIRECTION

SHADOW_SIZE = 2048  # M
SHADOW_BIAS = (
    1.5  # texels that a point is lifted off its surface before it is looked up: a surface is not to shade itself
)
SHADOW_BLUR = (-1.0, 0.0, 1.0)  # texels, along both edges: soft borders
WIDEST = 60.0  # degrees from the axis of a lamp that a shadow map can reach


class ShadowMap(NamedTuple):
    """How near to a lamp the nearest surface is."""

    view: View
    nearness: Float[np.ndarray, "M M"]
    texel: float  # m, of the largest


class Lamp(NamedTuple):
    """A light of the model; colours in [0, 1]."""

    position: Float[np.ndarray, " 3"]  # m
    direction: Float[np.ndarray, " 3"]  # in which it shines, length 1
    parallel: bool  # like the sun: the position does not matter
    ambient: Float[np.ndarray, " 3"]
    diffuse: Float[np.ndarray, " 3"]
    specular: Float[np.ndarray, " 3"]
    attenuation: Float[np.ndarray, " 3"]  # divides by a + b r + c r^2 at distance r, m
    cutoff: float  # degrees from the direction beyond which it is dark; 180: none
    exponent: float  # how fast it fades from the middle of a spot
    casts: bool  # whether it casts shadows
    shadow: ShadowMap | None


def make_lamps(mj_model: mujoco.MjModel, mj_data: mujoco.MjData, view: View) -> list[Lamp]:
    """The lights of a model as MuJoCo's renderer has them, and one more lamp where the MJCF names none.

    Args:
      mj_model: compiled model.
      mj_data: its state, with the lights' positions (`mujoco.mj_camlight`).
      view: what the headlight sits on; it shines straight ahead.
    """
    lamps, kinds = [], mujoco.mjtLightType
    head = mj_model.vis.headlight
    if head.active:
        colours = (np.array(head.ambient), np.array(head.diffuse), np.array(head.specular))
        lamps.append(Lamp(view.eye, view.axes[2], True, *colours, np.eye(3)[0], 180.0, 0.0, False, None))
    for light in np.flatnonzero(mj_model.light_active):
        if mj_model.light_type[light] != kinds.mjLIGHT_IMAGE:
            lamps.append(_lamp(mj_model, mj_data, int(light)))
    if not mj_model.nlight:
        ambient = np.full(3, 0.0 if head.active else AMBIENT + HEAD)
        colours = (ambient, np.full(3, LAMP), np.full(3, LAMP))
        lamps.append(Lamp(np.zeros(3), -np.array(LAMP_DIRECTION), True, *colours, np.eye(3)[0], 180.0, 0.0, True, None))
    return lamps


def _lamp(mj_model: mujoco.MjModel, mj_data: mujoco.MjData, light: int) -> Lamp:
    spot = mj_model.light_type[light] == mujoco.mjtLightType.mjLIGHT_SPOT
    return Lamp(
        position=np.array(mj_data.light_xpos[light]),
        direction=np.array(mj_data.light_xdir[light]),
        parallel=bool(mj_model.light_type[light] == mujoco.mjtLightType.mjLIGHT_DIRECTIONAL),
        ambient=np.array(mj_model.light_ambient[light], np.float64),
        diffuse=np.array(mj_model.light_diffuse[light], np.float64),
        specular=np.array(mj_model.light_specular[light], np.float64),
        attenuation=np.array(mj_model.light_attenuation[light], np.float64),
        cutoff=float(mj_model.light_cutoff[light]) if spot else 180.0,
        exponent=float(mj_model.light_exponent[light]) if spot else 0.0,
        casts=bool(mj_model.light_castshadow[light]),
        shadow=None,
    )


def with_shadow(lamp: Lamp, corners: Float[np.ndarray, "F 3 3"]) -> Lamp:
    """The lamp with a map of what lies in the shadow of triangles; without one if it stands amid them."""
    low, high = corners.min(axis=(0, 1)), corners.max(axis=(0, 1))
    middle, radius = (low + high) / 2, float(np.linalg.norm(high - low)) / 2
    axis, distance = (lamp.direction, 2 * radius) if lamp.parallel else _towards(lamp.position, middle)
    if radius > distance * np.sin(np.radians(WIDEST)):
        return lamp
    right = np.cross(axis, np.eye(3)[np.abs(axis).argmin()])
    right /= np.linalg.norm(right)
    half = radius if lamp.parallel else np.tan(np.arcsin(radius / distance))
    camera = Camera(
        position=-distance * axis,
        rotation=np.stack([right, np.cross(right, axis), -axis], axis=1),
        focal=np.float64(0.5 / half),
        center=np.full(2, 0.5),
        orthographic=lamp.parallel,
    )
    view = make_view(camera, middle, SHADOW_SIZE, SHADOW_SIZE)
    front, _ = clipped(corners, depths(view, corners))
    nearness, _ = rasterise(project(view, front), SHADOW_SIZE, SHADOW_SIZE)
    widest = 1.0 if lamp.parallel else distance + radius
    return lamp._replace(shadow=ShadowMap(view, nearness, widest / view.focal))


def _towards(start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, float]:
    """Direction and distance."""
    distance = float(np.linalg.norm(end - start))
    return (end - start) / max(distance, NEAR), distance


def illuminate(
    lamps: list[Lamp],
    point: Float[np.ndarray, "3 S"],
    normal: Float[np.ndarray, "3 S"],
    to_eye: Float[np.ndarray, "3 S"],
    exponent: Float[np.ndarray, " S"],
) -> tuple[Float[np.ndarray, "3 S"], Float[np.ndarray, "3 S"]]:
    """Light that a white matt surface gives back, and the highlights of one that mirrors.

    Args:
      lamps: from `make_lamps`.
      point: where, m.
      normal: of the surface, length 1, on the side that is seen.
      to_eye: direction to the eye, length 1.
      exponent: sharpness of the highlights.
    """
    matt, gloss = np.zeros_like(point), np.zeros_like(point)
    for lamp in lamps:
        to_lamp, distance = _unit(lamp.position[:, None] - point)
        if lamp.parallel:
            to_lamp = np.broadcast_to(-lamp.direction[:, None], point.shape).astype(point.dtype)
        facing = _dot(normal, to_lamp)
        reach = _reach(lamp, to_lamp, distance)
        lit = reach * (facing > 0)
        if lamp.shadow is not None:
            lit = lit * _unshadowed(lamp.shadow, point, normal)
        halfway, _ = _unit(to_lamp + to_eye)
        mirrored = np.maximum(_dot(normal, halfway), 0.0) ** exponent
        matt += lamp.ambient[:, None] * reach + lamp.diffuse[:, None] * (lit * facing)
        gloss += lamp.specular[:, None] * (lit * mirrored)
    return matt, gloss


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _unit(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same directions with length 1, and their lengths."""
    length = np.sqrt(np.maximum(_dot(a, a), 1e-24))
    return a / length, length


def _reach(lamp: Lamp, to_lamp: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """How much of a lamp's strength arrives: attenuation and cone of OpenGL's spot light."""
    if lamp.parallel:
        return np.ones_like(distance)
    a, b, c = lamp.attenuation
    reach = 1 / np.maximum(a + (b + c * distance) * distance, 1e-6)
    if lamp.cutoff < 180:
        along = np.maximum(-_dot(to_lamp, lamp.direction), 0.0)
        reach = reach * np.where(along >= np.cos(np.radians(lamp.cutoff)), along**lamp.exponent, 0.0)
    return reach


def _unshadowed(shadow: ShadowMap, point: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Share of the lamp that is seen from each point, in [0, 1]."""
    lifted = (point + SHADOW_BIAS * shadow.texel * normal).T
    column, row, nearness = project(shadow.view, lifted).T
    slack = SHADOW_BIAS * shadow.texel * (1.0 if shadow.view.orthographic else nearness**2)  # a depth, as nearness
    lit = np.zeros(len(column))
    for down in SHADOW_BLUR:
        for right in SHADOW_BLUR:
            i, j = (np.clip(np.floor(c + d), 0, SHADOW_SIZE - 1).astype(int) for c, d in ((row, down), (column, right)))
            lit += shadow.nearness[i, j] <= nearness + slack
    return lit / len(SHADOW_BLUR) ** 2
