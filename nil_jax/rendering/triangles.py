"""The surfaces of a MuJoCo model as triangles: meshes as they are, primitives as finely as asked for.

Axes: F triangles, P points of a profile, A points around it.
"""

from typing import NamedTuple

import mujoco
import numpy as np
from jaxtyping import Float, Int

HORIZON = 200.0  # m: half size of a plane without bounds
SEGMENTS = 24, 720  # fewest and most pieces of a circle
CREASE = 0.8  # cosine: a mesh's normal this far from the face's belongs to a rounded edge that the mesh does not have
_Type = mujoco.mjtGeom


class Triangles(NamedTuple):
    """Triangles in the world, with what their surface needs to be shaded; values at the corners."""

    position: Float[np.ndarray, "F 3 3"]  # m, world axes
    normal: Float[np.ndarray, "F 3 3"]  # outwards, world axes; not normalised where it was interpolated
    texture: Float[np.ndarray, "F 3 3"]  # (s, t, 0) in a 2D texture, or the direction from a cube's middle
    geom: Int[np.ndarray, " F"]  # MuJoCo geom id


class _Surface(NamedTuple):
    """A geom in its own frame."""

    position: np.ndarray  # [F, 3, 3] m
    normal: np.ndarray  # [F, 3, 3]
    unit: np.ndarray  # [F, 3, 3] position before the geom is scaled to its size: where a cube texture is looked up
    chart: np.ndarray  # [F, 3, 2] where a 2D texture is looked up: from 0 to 1, to the right and down


class _Profile(NamedTuple):
    """A line to be turned about the z axis and then scaled; coordinates are (distance from the axis, z)."""

    points: np.ndarray  # [P, 2]
    normals: np.ndarray  # [P, 2]
    unit: np.ndarray  # [P, 2]
    scale: np.ndarray  # [3] of points and normals along the axes


def make_triangles(
    mj_model: mujoco.MjModel,
    geom_ids: Int[np.ndarray, " K"],
    geom_xpos: Float[np.ndarray, "G 3"],
    geom_xmat: Float[np.ndarray, "G 3 3"],
    tolerance: float,
) -> Triangles:
    """The triangles of some geoms.

    Args:
      mj_model: compiled model.
      geom_ids: which geoms.
      geom_xpos: world positions of all geoms of the model, m.
      geom_xmat: world orientations of all geoms of the model.
      tolerance: how far a triangle may lie inside of the round primitive that it stands for, m.

    Raises:
      ValueError: a geom that cannot be drawn.
    """
    parts = []
    for geom in geom_ids.tolist():
        surface = _surface(mj_model, geom, tolerance)
        turn = geom_xmat[geom].T
        parts.append(
            Triangles(
                surface.position @ turn + geom_xpos[geom],
                surface.normal @ turn,
                _texture_coordinates(mj_model, geom, surface),
                np.full(len(surface.position), geom, np.int32),
            )
        )
    return Triangles(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _surface(mj_model: mujoco.MjModel, geom: int, tolerance: float) -> _Surface:
    kind, size = int(mj_model.geom_type[geom]), _half_edges(mj_model, geom)
    if kind == _Type.mjGEOM_MESH:
        return _mesh(mj_model, int(mj_model.geom_dataid[geom]), size)
    if kind == _Type.mjGEOM_PLANE:
        return _plane(size)
    if kind == _Type.mjGEOM_BOX:
        return _box(size)
    if kind not in _PROFILES:
        got = _Type(kind).name.removeprefix("mjGEOM_").lower()
        raise ValueError(
            f"geom {mj_model.geom(geom).name!r} (id {geom}): expected a plane, sphere, capsule, ellipsoid, cylinder, "
            f"box or mesh, got {got}; leave it out with geom_ids"
        )
    radius = size[0] if kind in (_Type.mjGEOM_CAPSULE, _Type.mjGEOM_CYLINDER) else size.max()
    step = 2 * np.arccos(np.clip(1 - tolerance / radius, -1, 1))  # rad: the arc whose chord misses it by the tolerance
    segments = int(np.clip(np.ceil(2 * np.pi / max(step, 1e-6)), *SEGMENTS))
    return _joined([_revolved(profile, segments) for profile in _PROFILES[kind](size, segments)])


def _half_edges(mj_model: mujoco.MjModel, geom: int) -> Float[np.ndarray, " 3"]:
    """Half the size along the axes, m; 0 where a plane has no end. A capsule's is without its caps."""
    size, kind = np.array(mj_model.geom_size[geom]), int(mj_model.geom_type[geom])
    if kind == _Type.mjGEOM_SPHERE:
        return size[[0, 0, 0]]
    return size[[0, 0, 1]] if kind in (_Type.mjGEOM_CAPSULE, _Type.mjGEOM_CYLINDER) else size


def _joined(surfaces: list[_Surface]) -> _Surface:
    return _Surface(*(np.concatenate(column) for column in zip(*surfaces, strict=True)))


def _arc(start: float, end: float, segments: int) -> np.ndarray:
    """[P, 2] cosine and sine from one angle to another, with `segments` pieces to a full circle."""
    angle = np.linspace(start, end, max(2, round(segments * (end - start) / (2 * np.pi)) + 1))
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def _sphere_profiles(size: np.ndarray, segments: int) -> list[_Profile]:
    unit = _arc(-np.pi / 2, np.pi / 2, segments)
    return [_Profile(unit, unit, unit, size)]


def _capsule_profiles(size: np.ndarray, segments: int) -> list[_Profile]:
    radius, _, half = size
    low, high = _arc(-np.pi / 2, 0.0, segments), _arc(0.0, np.pi / 2, segments)
    up = np.array([0.0, 1.0])
    ends = np.array([[1.0, -1.0], [1.0, 1.0]])
    return [
        _Profile(low * radius - half * up, low, low - up, np.ones(3)),
        _Profile(ends * [radius, half], ends * [1, 0], ends, np.ones(3)),
        _Profile(high * radius + half * up, high, high + up, np.ones(3)),
    ]


def _cylinder_profiles(size: np.ndarray, segments: int) -> list[_Profile]:
    side, top, bottom = ([1, -1], [1, 1]), ([0, 1], [1, 1]), ([0, -1], [1, -1])
    return [
        _Profile(np.array(points, float), np.array([normal, normal], float), np.array(points, float), size)
        for points, normal in ((side, [1, 0]), (top, [0, 1]), (bottom, [0, -1]))
    ]


_PROFILES = {
    int(_Type.mjGEOM_SPHERE): _sphere_profiles,
    int(_Type.mjGEOM_ELLIPSOID): _sphere_profiles,
    int(_Type.mjGEOM_CAPSULE): _capsule_profiles,
    int(_Type.mjGEOM_CYLINDER): _cylinder_profiles,
}


def _revolved(profile: _Profile, segments: int) -> _Surface:
    angle = np.linspace(0, 2 * np.pi, segments + 1)
    around = np.stack([np.cos(angle), np.sin(angle), np.ones_like(angle)], axis=-1)
    position, normal, unit = (values[:, None, [0, 0, 1]] * around for values in profile[:3])
    normal = normal / profile.scale
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    if np.any(profile.normals[:, 0]):
        down, right = np.meshgrid(np.linspace(1, 0, len(profile.points)), angle / (2 * np.pi), indexing="ij")
        chart = np.stack([right, down], axis=-1)
    else:  # a disk
        chart = 0.5 + 0.5 * unit[..., :2]
    return _Surface(*(_grid_triangles(values) for values in (position * profile.scale, normal, unit, chart)))


def _grid_triangles(values: Float[np.ndarray, "P A C"]) -> Float[np.ndarray, "F 3 C"]:
    """Two triangles for each cell of a grid."""
    a, b, c, d = values[:-1, :-1], values[:-1, 1:], values[1:, 1:], values[1:, :-1]
    return np.stack([np.stack([a, b, c], axis=2), np.stack([a, c, d], axis=2)]).reshape(-1, 3, values.shape[-1])


def _square() -> tuple[np.ndarray, np.ndarray]:
    """Two coordinates from -1 to 1 at the corners of a square's triangles, [2, 3] each."""
    grid = np.stack(np.meshgrid([-1.0, 1.0], [-1.0, 1.0], indexing="ij"), axis=-1)
    first, second = np.moveaxis(_grid_triangles(grid), -1, 0)
    return first, second


def _plane(size: np.ndarray) -> _Surface:
    (x, y), half = _square(), np.where(size[:2] > 0, size[:2], HORIZON)
    position = np.stack([half[0] * x, half[1] * y, np.zeros_like(x)], axis=-1)
    u = 0.5 * (x + 1) if size[0] > 0 else 0.5 * half[0] * x
    v = 0.5 * (1 - y) if size[1] > 0 else -0.5 * half[1] * y
    return _Surface(position, np.broadcast_to([0.0, 0.0, 1.0], position.shape), position, np.stack([u, v], axis=-1))


def _box(size: np.ndarray) -> _Surface:
    x, y = _square()
    sides = []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            face = np.insert(np.stack([x, y], axis=-1), axis, sign, axis=-1)
            normal = np.broadcast_to(sign * np.eye(3)[axis], face.shape)
            sides.append(_Surface(face * size, normal, face, np.stack([0.5 + 0.5 * x, 0.5 - 0.5 * y], axis=-1)))
    return _joined(sides)


def _mesh(mj_model: mujoco.MjModel, mesh: int, size: np.ndarray) -> _Surface:
    """A mesh in the frame of its geoms, where MuJoCo has already centred it."""
    rows = slice(mj_model.mesh_faceadr[mesh], mj_model.mesh_faceadr[mesh] + mj_model.mesh_facenum[mesh])
    position = mj_model.mesh_vert[mj_model.mesh_face[rows] + mj_model.mesh_vertadr[mesh]].astype(np.float64)
    normal = mj_model.mesh_normal[mj_model.mesh_facenormal[rows] + mj_model.mesh_normaladr[mesh]].astype(np.float64)
    if mj_model.mesh_texcoordadr[mesh] >= 0:
        own = mj_model.mesh_texcoord[mj_model.mesh_facetexcoord[rows] + mj_model.mesh_texcoordadr[mesh]]
        return _Surface(position, normal, position, own.astype(np.float64))
    flat = np.cross(position[:, 1] - position[:, 0], position[:, 2] - position[:, 0])
    flat /= np.maximum(np.linalg.norm(flat, axis=-1, keepdims=True), 1e-30)
    edge = np.einsum("fci,fi->fc", normal, flat) < CREASE
    normal = np.where(edge[..., None], flat[:, None], normal)
    return _Surface(position, normal, position, 0.5 * position[..., :2] / size[:2] * [1, -1])


def _texture_coordinates(mj_model: mujoco.MjModel, geom: int, surface: _Surface) -> Float[np.ndarray, "F 3 3"]:
    """Where corners lie in the geom's texture, by the rules of MuJoCo's renderer (since its version 4)."""
    texture, kind = texture_id(mj_model, geom), int(mj_model.geom_type[geom])
    if texture < 0:
        return np.zeros_like(surface.unit)
    material, size = int(mj_model.geom_matid[geom]), _half_edges(mj_model, geom)
    uniform = mj_model.mat_texuniform[material]
    if mj_model.tex_type[texture] != mujoco.mjtTexture.mjTEXTURE_2D:
        return surface.unit * (size if uniform else 1.0)
    scale = np.array(mj_model.mat_texrepeat[material], np.float64)
    scale *= np.where((size[:2] > 0) & bool(uniform), size[:2], 1.0)  # "uniform": repeats per metre, not per geom
    endless = kind == _Type.mjGEOM_PLANE and not size[:2].all()
    bare = kind == _Type.mjGEOM_MESH and mj_model.mesh_texcoordadr[mj_model.geom_dataid[geom]] < 0
    st = surface.chart * scale - (0.5 if endless or bare else 0.0)
    return np.concatenate([st, np.zeros((*st.shape[:2], 1))], axis=-1)


def texture_id(mj_model: mujoco.MjModel, geom: int) -> int:
    """The texture of a geom's colour; -1 for none."""
    material = int(mj_model.geom_matid[geom])
    return int(mj_model.mat_texid[material, mujoco.mjtTextureRole.mjTEXROLE_RGB]) if material >= 0 else -1
