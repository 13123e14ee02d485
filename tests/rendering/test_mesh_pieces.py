"""Meshes as convex pieces: what they cover, and the cache on disk."""

import mujoco
import numpy as np
import pytest
from scipy.spatial import ConvexHull

from nil_jax.rendering import make_scene
from nil_jax.rendering.meshes import MeshConfig, convex_pieces

BOX = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NIL_JAX_CACHE", str(tmp_path))
    return tmp_path / "meshes"


def boxes(*corners_and_sizes):
    """One mesh made of boxes."""
    faces = ConvexHull(BOX).simplices
    vertices = [np.array(corner) + BOX * np.array(size) for corner, size in corners_and_sizes]
    return np.concatenate(vertices), np.concatenate([faces + 8 * i for i in range(len(vertices))])


def inside(pieces, points):
    return np.any([np.all(points @ p[:, :3].T <= p[:, 3], axis=1) for p in pieces], axis=0)


def test_box_needs_one_piece_of_six_planes():
    (piece,) = convex_pieces(*boxes(((0, 0, 0), (1, 2, 3))), 3.0)
    assert piece.shape == (6, 4)
    np.testing.assert_allclose(sorted(piece[:, 3]), [0, 0, 0, 1, 2, 3], atol=1e-2)


def test_hollow_of_an_l_shape_stays_empty():
    """Points at least 0.3 from the inner walls: the cut falls on one of twelve tried positions, 0.23 apart."""
    pieces = convex_pieces(*boxes(((0, 0, 0), (3, 1, 1)), ((0, 0, 0), (1, 1, 3))), 3.0)
    grid = np.array([0.1, 0.4, 0.7, 1.3, 1.8, 2.3, 2.9])
    points = np.stack(np.meshgrid(grid, [0.5], grid, indexing="ij"), axis=-1).reshape(-1, 3)
    solid = (points[:, 0] < 1) | (points[:, 2] < 1)
    assert len(pieces) >= 2
    np.testing.assert_array_equal(inside(pieces, points), solid)


def test_flat_sheet_is_drawn_as_a_thin_plate():
    corners = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], float)
    (piece,) = convex_pieces(corners, np.array([[0, 1, 2], [0, 2, 3]]), 1.0)
    assert inside([piece], np.array([[0.5, 0.5, 0.0]])).all()
    assert not inside([piece], np.array([[0.5, 0.5, 0.01], [1.1, 0.5, 0.0]])).any()


def test_a_speck_is_drawn_as_it_is():
    (piece,) = convex_pieces(*boxes(((0, 0, 0), (2e-3, 2e-3, 2e-3))), 1.8)
    np.testing.assert_allclose(sorted(piece[:, 3]), [0, 0, 0, 2e-3, 2e-3, 2e-3], atol=1e-4)


def test_mesh_is_cut_once_and_then_read_from_the_cache(cache, monkeypatch):
    mesh = boxes(((0, 0, 0), (3, 1, 1)), ((0, 0, 0), (1, 1, 3)))
    first = convex_pieces(*mesh, 3.0)
    assert [file.suffix for file in cache.iterdir()] == [".npz"]
    monkeypatch.setattr("nil_jax.rendering.meshes._cut", None)  # calling it again would be an error
    for a, b in zip(first, convex_pieces(*mesh, 3.0), strict=True):
        np.testing.assert_array_equal(a, b)


def test_other_parameters_make_another_entry_and_a_damaged_one_is_replaced(cache):
    mesh = boxes(((0, 0, 0), (1, 2, 3)))
    convex_pieces(*mesh, 3.0)
    convex_pieces(*mesh, 3.0, MeshConfig(planes=8))
    files = list(cache.iterdir())
    assert len(files) == 2
    for file in files:
        file.write_bytes(file.read_bytes()[:100])
    (piece,) = convex_pieces(*mesh, 3.0)
    assert piece.shape == (6, 4)


def test_cache_folder_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("NIL_JAX_CACHE", str(blocked))
    assert len(convex_pieces(*boxes(((0, 0, 0), (1, 2, 3))), 3.0)) == 1


def test_mesh_used_by_two_geoms_is_cut_once(cache):
    vertices = " ".join(map(str, boxes(((0, 0, 0), (1, 2, 3)))[0].ravel()))
    model = mujoco.MjModel.from_xml_string(
        f'<mujoco><asset><mesh name="box" vertex="{vertices}"/></asset><worldbody><body>'
        '<geom type="mesh" mesh="box"/><geom type="mesh" mesh="box" pos="3 0 0"/></body></worldbody></mujoco>'
    )
    scene = make_scene(model)
    assert {geom for group in scene.groups for geom in group.geom.tolist()} == {0, 1}
    assert len(list(cache.iterdir())) == 1
