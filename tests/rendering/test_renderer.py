"""How the renderer behaves: transformations, cameras, colours, compilation, bad input."""

import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from nil_jax.rendering import make_scene, pixel_rays, render, render_masks, side_camera

H, W, N = 24, 32, 4
SHAPE = {"height": H, "width": W}
BODY = """
<mujoco>
  <asset><material name="red" rgba="1 0 0 1"/></asset>
  <worldbody>
    <geom name="floor" type="plane" size="0 0 1"/>
    <body pos="0 0 1">
      <geom name="ball" type="sphere" size=".2" material="red"/>
      <geom name="stick" type="capsule" size=".05 .2" pos=".4 0 0" rgba="0 0 1 1"/>
      <geom name="collision" type="box" size="1 1 1" group="3"/>
      <geom name="glass" type="box" size="1 1 1" rgba="1 1 1 0"/>
    </body>
  </worldbody>
</mujoco>
"""
BALL, STICK = 1, 2


@pytest.fixture
def model():
    return mujoco.MjModel.from_xml_string(BODY)


@pytest.fixture
def poses(model, strict_promotion):
    """Geom positions and orientations of N poses, each 0.1 m further along x, and the point to follow."""
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    shift = 0.1 * np.arange(N, dtype=np.float32)[:, None, None] * np.array([1.0, 0.0, 0.0], np.float32)
    xpos = jnp.asarray(data.geom_xpos.astype(np.float32)[None] + shift)
    xmat = jnp.asarray(np.tile(data.geom_xmat.reshape(1, -1, 3, 3), (N, 1, 1, 1)).astype(np.float32))
    return xpos, xmat, jnp.tile(jnp.array([[0.0, 0.0, 1.0]]), (N, 1))


def test_default_scene_holds_visible_geoms_and_no_floor(model):
    def drawn(scene):
        return {geom for group in scene.groups for geom in group.geom.tolist()}

    assert drawn(make_scene(model)) == {BALL, STICK}
    assert drawn(make_scene(model, geom_ids=[STICK])) == {STICK}


def test_robot_that_walks_forward_moves_right_and_height_is_up(model, poses):
    xpos, xmat, target = poses
    xpos = xpos.at[:, :, 2].add(0.2)
    mask = np.asarray(render_masks(make_scene(model, [BALL]), xpos, xmat, side_camera(3.0, 0.0), target, **SHAPE))
    rows, columns = (np.array([np.nonzero(frame)[axis].mean() for frame in mask]) for axis in (0, 1))
    assert (np.diff(columns) > 0).all()
    assert (rows < H / 2 - 0.5).all()


def test_projection_is_the_pinhole_formula(model, poses):
    """A ball at (x, z) from the optical axis and distance d is seen at (cx W + f H x / d, cy H - f H z / d)."""
    ball = mujoco.MjModel.from_xml_string(
        '<mujoco><worldbody><body><geom type="sphere" size=".03"/></body></worldbody></mujoco>'
    )
    xpos = jnp.array([[[0.5, 0.2, 0.3]]])
    camera = side_camera(2.0, 0.1, focal=1.5, center=(0.4, 0.6))
    mask = render_masks(
        make_scene(ball), xpos, jnp.eye(3)[None, None], camera, jnp.zeros((1, 3)), height=200, width=300
    )
    row, column = (np.nonzero(np.asarray(mask[0]))[axis].mean() + 0.5 for axis in (0, 1))
    assert column == pytest.approx(0.4 * 300 + 1.5 * 200 * 0.5 / 2.2, abs=0.5)  # half a pixel
    assert row == pytest.approx(0.6 * 200 - 1.5 * 200 * 0.2 / 2.2, abs=0.5)


def test_pixel_rays_have_unit_depth_and_pass_through_pixel_centres():
    origins, rays = (np.asarray(part) for part in pixel_rays(side_camera(1.0, 0.0, focal=2.0), 2, 4))
    np.testing.assert_allclose(origins - [0.0, -1.0, 0.0], 0.0, atol=1e-7)
    np.testing.assert_allclose(rays[..., 1], 1.0)
    np.testing.assert_allclose(rays[0, :, 0], np.array([-1.5, -0.5, 0.5, 1.5]) / (2 * 2.0))
    np.testing.assert_allclose(rays[:, 0, 2], np.array([0.5, -0.5]) / (2 * 2.0))


def test_frame_k_shows_pose_k_under_vmap_and_scan(model, poses):
    scene, camera = make_scene(model), side_camera(3.0, 0.0)
    batched = render(scene, *poses[:2], camera, poses[2], **SHAPE)

    def single(pose):
        xpos, xmat, target = pose
        frames = render(scene, xpos[None], xmat[None], camera, target[None], **SHAPE)
        return jax.tree.map(lambda leaf: leaf[0], frames)

    mapped = jax.vmap(single)(poses)
    _, scanned = jax.lax.scan(lambda carry, pose: (carry, single(pose)), None, poses)
    assert len({frame.tobytes() for frame in np.asarray(batched.segmentation)}) == N
    for other in (mapped, scanned):
        np.testing.assert_array_equal(batched.segmentation, other.segmentation)
        np.testing.assert_allclose(batched.depth, other.depth, rtol=1e-5)
        np.testing.assert_allclose(batched.rgb.astype(int), other.rgb.astype(int), atol=1)  # rounding


SHARDED = """
import jax, numpy as np
from jax.sharding import Mesh, PartitionSpec as P
from nil_jax.rendering import make_scene, render, side_camera
import mujoco
model = mujoco.MjModel.from_xml_string('<mujoco><worldbody><geom type="sphere" size=".2"/></worldbody></mujoco>')
scene, camera = make_scene(model), side_camera(3.0, 0.0)
xpos = np.linspace(-0.5, 0.5, 8, dtype=np.float32)[:, None, None] * np.array([1, 0, 0], np.float32)
xmat, target = np.tile(np.eye(3, dtype=np.float32), (8, 1, 1, 1)), np.zeros((8, 3), np.float32)
draw = lambda *poses: render(scene, *poses, camera=camera, target=poses[0][:, 0] * 0, height=24, width=24).segmentation
part = P("envs")
split = jax.shard_map(draw, mesh=Mesh(jax.devices(), "envs"), in_specs=(part, part), out_specs=part, check_vma=False)
whole, parts = (np.asarray(jax.jit(f)(xpos, xmat)) for f in (draw, split))
assert len(jax.devices()) == 4 and len({frame.tobytes() for frame in whole}) == 8
np.testing.assert_array_equal(whole, parts)
"""


def test_frame_k_shows_pose_k_under_shard_map():
    """In a process of its own: the number of devices is fixed when JAX starts."""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", SHARDED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_batch_of_cameras_equals_a_loop_over_cameras(model, poses):
    scene = make_scene(model)
    cameras = [side_camera(2.0 + i, 0.1 * i, focal=1.0 + 0.2 * i, center=(0.5, 0.4 + 0.05 * i)) for i in range(N)]
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *cameras)
    together = render_masks(scene, *poses[:2], batch, poses[2], **SHAPE)
    for i, camera in enumerate(cameras):
        alone = render_masks(scene, *(leaf[i : i + 1] for leaf in poses[:2]), camera, poses[2][i : i + 1], **SHAPE)
        np.testing.assert_array_equal(together[i], alone[0])
    only_focal = dataclasses.replace(cameras[0], focal=batch.focal)
    assert render_masks(scene, *poses[:2], only_focal, poses[2], **SHAPE).shape == (N, H, W)


def test_colours_depth_and_background(model, poses):
    frames = render(make_scene(model), *poses[:2], side_camera(3.0, 0.0), poses[2], height=25, width=25)
    assert (frames.rgb.dtype, frames.depth.dtype, frames.segmentation.dtype) == (jnp.uint8, jnp.float32, jnp.int32)
    red, green, blue = np.asarray(frames.rgb[0, 12, 12], int)
    assert red > 150 > green == blue
    assert frames.segmentation[0, 12, 12] == BALL
    assert float(frames.depth[0, 12, 12]) == pytest.approx(2.8, abs=1e-4)
    assert frames.rgb[0, 0, 0].tolist() == [255, 255, 255]
    assert np.isinf(frames.depth[0, 0, 0])
    assert frames.segmentation[0, 0, 0] == -1


def test_a_white_robot_stands_out_from_the_white_background(model, poses):
    scene = dataclasses.replace(make_scene(model), rgb=np.ones((model.ngeom, 3), np.float32))
    frames = render(scene, *poses[:2], side_camera(3.0, 0.0), poses[2], **SHAPE)
    np.testing.assert_array_equal((frames.rgb == 255).all(axis=-1), frames.segmentation < 0)


def test_geom_around_the_camera_or_behind_it_is_not_drawn(model, poses):
    scene = make_scene(model, [BALL])
    inside = render_masks(scene, *poses[:2], side_camera(0.1, 0.0), poses[2], **SHAPE)
    behind = render_masks(scene, *poses[:2], side_camera(1.0, 0.0), poses[2] + jnp.array([[0.0, 3.0, 0.0]]), **SHAPE)
    assert not inside[0].any()
    assert not behind.any()


@pytest.mark.parametrize("function", [render, render_masks])
def test_new_poses_and_cameras_compile_nothing_new(function, model, poses):
    scene = make_scene(model)
    function(scene, *poses[:2], side_camera(3.0, 0.0), poses[2], **SHAPE)
    compiled = function._cache_size()
    function(scene, poses[0] + 0.1, poses[1], side_camera(4.0, 0.2, 1.3), poses[2], **SHAPE)
    assert function._cache_size() == compiled


@pytest.mark.parametrize("shape", [{"height": 0, "width": 4}, {"height": 4, "width": -1}])
@pytest.mark.parametrize("function", [render, render_masks])
def test_size_that_is_not_positive_is_refused(function, shape, model, poses):
    with pytest.raises(ValueError, match="at least 1 pixel"):
        function(make_scene(model), *poses[:2], side_camera(3.0, 0.0), poses[2], **shape)


def test_camera_without_distance_or_focal_is_refused():
    with pytest.raises(ValueError, match="distance"):
        side_camera(0.0, 1.0)
    with pytest.raises(ValueError, match="focal"):
        side_camera(1.0, 1.0, focal=-1.0)


def test_geom_type_that_cannot_be_drawn_is_named_with_those_that_can():
    model = mujoco.MjModel.from_xml_string(
        '<mujoco><asset><hfield name="hills" nrow="3" ncol="3" size="1 1 1 1"/></asset><worldbody>'
        '<geom name="ground" type="hfield" hfield="hills"/></worldbody></mujoco>'
    )
    with pytest.raises(ValueError, match=r"'ground'.*sphere.*got hfield"):
        make_scene(model)


def test_scene_of_nothing_or_of_unknown_ids_is_refused(model):
    with pytest.raises(ValueError, match="at least one geom"):
        make_scene(model, geom_ids=[])
    with pytest.raises(ValueError, match=r"0\.\.4"):
        make_scene(model, geom_ids=[99])
