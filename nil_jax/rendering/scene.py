"""What there is to draw: the geoms of a MuJoCo model, grouped by kind.

Axes: K geoms (or convex pieces of meshes) of one kind, G geoms of the model, P planes of a polytope.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import mujoco
import numpy as np
from jaxtyping import Float, Int

from nil_jax.rendering.geometry import ENDLESS
from nil_jax.rendering.meshes import convex_pieces

DRAWN_GROUPS = (0, 1, 2)  # MuJoCo's convention, and its viewer's default: group 3 holds collision geoms
_TYPES = {
    int(mujoco.mjtGeom.mjGEOM_PLANE): "plane",
    int(mujoco.mjtGeom.mjGEOM_SPHERE): "ellipsoid",
    int(mujoco.mjtGeom.mjGEOM_CAPSULE): "capsule",
    int(mujoco.mjtGeom.mjGEOM_ELLIPSOID): "ellipsoid",
    int(mujoco.mjtGeom.mjGEOM_CYLINDER): "cylinder",
    int(mujoco.mjtGeom.mjGEOM_BOX): "polytope",
    int(mujoco.mjtGeom.mjGEOM_MESH): "polytope",
}
_DRAWABLE = "plane, sphere, capsule, ellipsoid, cylinder, box, mesh"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Group:
    """Geoms of one kind; what the parameters mean is said in `geometry.KINDS`."""

    kind: str = field(metadata={"static": True})
    geom: Int[np.ndarray, " K"]  # MuJoCo geom ids; a mesh occurs once per convex piece
    parameters: Float[np.ndarray, "K ..."]
    boxes: Float[np.ndarray, "K 2 3"]  # middle and half edges of the bounding box, m, frame of the geom


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scene:
    """The geoms to draw. A pytree of NumPy arrays: pass it to a jitted function or close over it."""

    groups: tuple[Group, ...]
    rgb: Float[np.ndarray, "G 3"]  # colour of every geom of the model, in [0, 1]


def make_scene(mj_model: mujoco.MjModel, geom_ids: Sequence[int] | np.ndarray | None = None) -> Scene:
    """The scene of a model.

    Args:
      mj_model: compiled model.
      geom_ids: draw only these. Default: geoms of groups 0, 1 and 2 that are not fully transparent, without the planes
        of the world body (the floor).

    Raises:
      ValueError: a geom that cannot be drawn, an id outside the model, or nothing to draw.
    """
    rgba, ids = geom_rgba(mj_model), drawn_geoms(mj_model, geom_ids)
    size = _extent(mj_model, ids)
    found: dict[tuple[str, tuple[int, ...]], list[tuple[int, np.ndarray]]] = {}
    for geom in ids.tolist():
        kind, parameters = _parameters(mj_model, geom, size)
        for row in parameters:
            found.setdefault((kind, row.shape), []).append((geom, row))
    groups = tuple(
        Group(
            kind,
            np.array([geom for geom, _ in rows], np.int32),
            np.stack([parameters for _, parameters in rows]).astype(np.float32),
            np.stack([_box(kind, parameters) for _, parameters in rows]).astype(np.float32),
        )
        for (kind, _), rows in sorted(found.items())
    )
    return Scene(groups, rgba[:, :3].astype(np.float32))


def drawn_geoms(mj_model: mujoco.MjModel, geom_ids: Sequence[int] | np.ndarray | None) -> np.ndarray:
    """Ids of the geoms to draw: `geom_ids`, or the default that `make_scene` describes.

    Raises:
      ValueError: an id outside the model, or nothing to draw.
    """
    ids = _default_ids(mj_model) if geom_ids is None else np.asarray(geom_ids, np.int64).reshape(-1)
    if ids.size == 0:
        raise ValueError(f"geom_ids: expected at least one geom to draw, got none of the model's {mj_model.ngeom}")
    if ids.min() < 0 or ids.max() >= mj_model.ngeom:
        raise ValueError(f"geom_ids: expected ids in 0..{mj_model.ngeom - 1}, got {ids.min()}..{ids.max()}")
    return ids


def geom_rgba(mj_model: mujoco.MjModel) -> Float[np.ndarray, "G 4"]:
    """A geom's own colour, or its material's where its own was left at MuJoCo's default."""
    rgba = np.array(mj_model.geom_rgba)
    for geom, material in enumerate(mj_model.geom_matid):
        if material >= 0 and np.allclose(rgba[geom], (0.5, 0.5, 0.5, 1.0)):
            rgba[geom] = mj_model.mat_rgba[material]
    return rgba


def _default_ids(mj_model: mujoco.MjModel) -> np.ndarray:
    rgba = geom_rgba(mj_model)
    floor = (mj_model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE) & (mj_model.geom_bodyid == 0)
    return np.flatnonzero(np.isin(mj_model.geom_group, DRAWN_GROUPS) & (rgba[:, 3] > 0) & ~floor)


def _extent(mj_model: mujoco.MjModel, ids: np.ndarray) -> float:
    """Longest edge of the box around the geoms' centres in the model's default pose, m."""
    data = mujoco.MjData(mj_model)
    mujoco.mj_kinematics(mj_model, data)
    return float(max(np.ptp(data.geom_xpos[ids], axis=0).max(), 2 * mj_model.geom_rbound[ids].max()))


def _parameters(mj_model: mujoco.MjModel, geom: int, extent: float) -> tuple[str, list[np.ndarray]]:
    """The kind of a geom and its parameters, one row per convex piece."""
    kind, size = int(mj_model.geom_type[geom]), np.array(mj_model.geom_size[geom])
    if kind not in _TYPES:
        got = mujoco.mjtGeom(kind).name.removeprefix("mjGEOM_").lower()
        raise ValueError(
            f"geom {mj_model.geom(geom).name!r} (id {geom}): expected a type that can be drawn ({_DRAWABLE}), "
            f"got {got}; leave it out with make_scene(mj_model, geom_ids=...) or put it in geom group 3"
        )
    if kind == mujoco.mjtGeom.mjGEOM_SPHERE:
        return "ellipsoid", [np.full(3, size[0] ** -2)]
    if kind == mujoco.mjtGeom.mjGEOM_ELLIPSOID:
        return "ellipsoid", [size**-2]
    if kind == mujoco.mjtGeom.mjGEOM_BOX:
        return "polytope", [np.concatenate([np.c_[np.eye(3), size], np.c_[-np.eye(3), size]])]
    if kind == mujoco.mjtGeom.mjGEOM_MESH:
        pieces = convex_pieces(*_mesh(mj_model, int(mj_model.geom_dataid[geom])), extent)
        return "polytope", [_padded(planes) for planes in pieces]
    return _TYPES[kind], [size[:2]]


def _box(kind: str, parameters: np.ndarray) -> np.ndarray:
    """[2, 3] middle and half edges of the box around a geom or a piece of one."""
    if kind == "polytope":  # all have planes across the axes
        high, low = (
            [parameters[(parameters[:, :3] == sign * axis).all(axis=1), 3].min() for axis in np.eye(3)]
            for sign in (1, -1)
        )
        return np.stack([np.subtract(high, low) / 2, np.add(high, low) / 2])
    if kind == "ellipsoid":
        half = parameters**-0.5
    elif kind == "plane":
        half = np.append(np.where(parameters > 0, parameters, ENDLESS), 0.0)
    else:
        radius, length = parameters
        half = np.array([radius, radius, length + radius * (kind == "capsule")])
    return np.stack([np.zeros(3), half])


def _padded(planes: np.ndarray) -> np.ndarray:
    """Repeats the last plane up to a multiple of 8: few different counts, hence few loops to compile."""
    return np.concatenate([planes, np.repeat(planes[-1:], -len(planes) % 8, axis=0)])


def _mesh(mj_model: mujoco.MjModel, mesh: int) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [V, 3] in the frame of the mesh's geoms (MuJoCo has already centred them there), faces [F, 3]."""
    vertices, faces = mj_model.mesh_vertadr[mesh], mj_model.mesh_faceadr[mesh]
    return (
        np.array(mj_model.mesh_vert[vertices : vertices + mj_model.mesh_vertnum[mesh]], np.float64),
        np.array(mj_model.mesh_face[faces : faces + mj_model.mesh_facenum[mesh]], np.int32),
    )
