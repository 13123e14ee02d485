"""Meshes as a few convex polytopes with few planes, cached on disk.

Axes: V vertices, F triangles, P planes of a piece.

One convex hull fills every hollow, so a mesh is cut greedily: of all cuts across an axis of its frame (MuJoCo has
turned that to the principal axes of inertia), take the one that removes most hull volume, until nothing is worth
removing. Each piece is then bounded from outside by the few planes that matter. That needs neither watertight meshes
nor good triangles.
"""

import hashlib
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import ConvexHull, HalfspaceIntersection, QhullError

from nil_jax.cache import cache_folder, keep

_VERSION = b"1"  # of this file's arithmetic: a new one makes old cache entries unused


class MeshConfig(NamedTuple):
    """How closely a mesh is followed; a cost per pixel that grows with the number of planes."""

    pieces: int = 16  # at most so many convex pieces
    planes: int = 48  # of each piece, at most
    gain: float = 0.015  # a cut must remove a cube of this edge; shares of the whole robot's size from here on
    tolerance: float = 0.001  # a piece stands out of its hull by at most this (if the planes allow)
    cell: float = 0.002  # vertices this close together are merged before the cutting
    cuts: int = 8  # positions tried along each axis


DEFAULT = MeshConfig()


def convex_pieces(
    vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"], size: float, config: MeshConfig = DEFAULT
) -> list[Float[np.ndarray, "P 4"]]:
    """Polytopes whose union resembles the mesh: outward planes (unit normal n, offset h) of `n.p <= h`.

    The answer is kept in the folder NIL_JAX_CACHE (default `~/.cache/nil_jax`) under a hash of all arguments.

    Args:
      vertices: m.
      faces: triangles, as indices of vertices; they need not close.
      size: of the whole robot, m: what is small beside it is not worth a piece.
      config: how closely to follow.
    """
    config = config._replace(**{name: getattr(config, name) * round(size, 3) for name in ("gain", "tolerance", "cell")})
    content = _VERSION + vertices.astype("<f4").tobytes() + faces.astype("<i4").tobytes() + repr(config).encode()
    root = cache_folder()
    file = root / "meshes" / f"{hashlib.sha256(content).hexdigest()[:32]}.npz"
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            planes, lengths = stored["planes"], stored["lengths"]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):  # absent, or cut short by a full disk
        pieces = [_bounding_planes(points, config) for points in _cut(vertices, faces, config)]
        planes, lengths = np.concatenate(pieces), np.array([len(piece) for piece in pieces])
        keep(file, lambda stream: np.savez(stream, planes=planes, lengths=lengths))
    return np.split(planes, np.cumsum(lengths)[:-1])


def _simplified(vertices: np.ndarray, faces: np.ndarray, cell: float) -> np.ndarray:
    """Triangles [F, 3, 3] after merging all vertices of a cubic cell; those that vanish are left out, unless all do."""
    _, first, merged = np.unique(np.round(vertices / cell), axis=0, return_index=True, return_inverse=True)
    left = merged.reshape(-1)[faces]
    real = (left[:, 0] != left[:, 1]) & (left[:, 1] != left[:, 2]) & (left[:, 2] != left[:, 0])
    return vertices[first][left[real]] if real.any() else vertices[faces]


def _hull(points: np.ndarray) -> ConvexHull:
    try:
        return ConvexHull(points)
    except QhullError:  # flat: a sheet gets a little thickness
        corners = np.stack(np.meshgrid(*[(-1, 1)] * 3), axis=-1).reshape(8, 3)
        return ConvexHull((points[:, None] + 1e-3 * np.ptp(points, axis=0).max() * corners).reshape(-1, 3))


def _below(triangles: np.ndarray, axis: int, position: float, sign: int) -> np.ndarray:
    """What of the triangles lies on one side of a plane, as triangles."""
    above = sign * (triangles[..., axis] - position)
    outside = above > 0
    count = outside.sum(axis=1)
    kept = [triangles[count == 0]]
    for number in (1, 2):  # corners outside: the odd one of three is turned to the front
        odd = np.argmax(outside[count == number] == (number == 1), axis=1)[:, None]
        order = (odd + np.arange(3)) % 3
        a, b, c = np.moveaxis(np.take_along_axis(triangles[count == number], order[..., None], axis=1), 1, 0)
        height = np.take_along_axis(above[count == number], order, axis=1)[..., None]
        ab = a + (b - a) * height[:, 0] / (height[:, 0] - height[:, 1])
        ac = a + (c - a) * height[:, 0] / (height[:, 0] - height[:, 2])
        corners = [(ab, b, c), (ab, c, ac)] if number == 1 else [(a, ab, ac)]
        kept += [np.stack(triangle, axis=1) for triangle in corners]
    return np.concatenate(kept)


def _best_cut(triangles: np.ndarray, config: MeshConfig) -> tuple[float, tuple[np.ndarray, ...]]:
    """The cut that removes most hull volume, and the triangles of its two halves."""
    points = triangles.reshape(-1, 3)
    whole, best, halves = _hull(points).volume, 0.0, (triangles,)
    for axis in range(3):
        for position in np.linspace(points[:, axis].min(), points[:, axis].max(), config.cuts + 2)[1:-1]:
            parts = tuple(_below(triangles, axis, position, sign) for sign in (1, -1))
            if min(map(len, parts)) < 4:  # triangles: specks are not worth a piece
                continue
            gain = whole - sum(_hull(part.reshape(-1, 3)).volume for part in parts)
            if gain > best:
                best, halves = gain, parts
    return best, halves


def _cut(vertices: np.ndarray, faces: np.ndarray, config: MeshConfig) -> list[np.ndarray]:
    """Points [.., 3] whose hulls are the pieces."""
    triangles = _simplified(vertices, faces, config.cell)
    pieces = [(triangles, _best_cut(triangles, config))]
    while len(pieces) < config.pieces:
        worst = max(range(len(pieces)), key=lambda i: pieces[i][1][0])
        gain, halves = pieces[worst][1]
        if gain <= config.gain**3:
            break
        pieces[worst : worst + 1] = [(half, _best_cut(half, config)) for half in halves]
    return [triangles.reshape(-1, 3) for triangles, _ in pieces]


def _bounding_planes(points: np.ndarray, config: MeshConfig) -> np.ndarray:
    """Facets of the hull, chosen one at a time: always the one that cuts off most at the farthest corner so far."""
    hull = _hull(points)
    inside = hull.points[hull.vertices].mean(axis=0)
    axes = np.concatenate([np.eye(3), -np.eye(3)])
    chosen = np.concatenate([axes, -np.max(hull.points @ axes.T, axis=0)[:, None]], axis=1)
    while True:
        corners = HalfspaceIntersection(chosen, inside, qhull_options="QJ").intersections
        sticking_out = (corners @ hull.equations[:, :3].T + hull.equations[:, 3]).max(axis=0)
        facet = int(np.argmax(sticking_out))
        if len(chosen) >= config.planes or sticking_out[facet] <= config.tolerance:
            break
        chosen = np.concatenate([chosen, hull.equations[facet : facet + 1]])
    # Tangent planes enclose the piece: shrink them to its volume, so that the silhouette is right on average.
    normals, center = chosen[:, :3], inside @ chosen[:, :3].T
    shrink = min(1.0, (hull.volume / _hull(corners).volume) ** (1 / 3))
    return np.concatenate([normals, (center + shrink * (-chosen[:, 3] - center))[:, None]], axis=1)
