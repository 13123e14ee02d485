"""Pictures against MuJoCo's own ray caster: the same rays, ids and depth compared pixel by pixel."""

from importlib import resources
from pathlib import Path

import jax
import mujoco
import numpy as np
import pytest
import rays

from nil_jax.rendering import make_scene, model_camera, pixel_rays, render, render_masks, side_camera

SIZE = 96
POSES = 50
MIN_PIXELS = 30  # smaller geoms consist of edge pixels only
GEOM_IOU = 0.98
AGREEMENT = 0.999  # the rest: float32 against float64 on silhouettes
TIE = 1e-4  # m
DEPTH_ERROR = 1e-3  # m, float32 at grazing incidence; 5e-5 is typical
MESH_AGREEMENT = 0.995  # convex pieces stand for the triangles
MESH_IOU, MESH_IOU_EACH = 0.97, 0.94  # mean over the poses, and the worst of them
MESH_DEPTH_ERROR, MESH_DEPTH_SHARE = 0.01, 0.98  # of the depth; in how many pixels: the rest are hollows of a piece
ASSETS = Path(__file__).resolve().parents[2] / "envs" / "assets"

PRIMITIVES = """
<mujoco>
  <visual><global fovy="50"/></visual>
  <worldbody>
    <geom type="plane" size=".4 .3 .1" pos="0 .6 1" euler="60 20 0"/>
    <camera name="fixed" pos="-1.5 -2.5 1.8" xyaxes="1 -.6 0 .2 .3 1"/>
    <camera name="flat" projection="orthographic" fovy="2" pos="-1.5 -2.5 1.8" xyaxes="1 -.6 0 .2 .3 1"/>
    <camera name="lens" pos="0 -3 1" xyaxes="1 0 0 0 0 1" resolution="1 1" sensorsize=".003 .003"
            focal=".004 .004" principal=".0003 -.0002"/>
    <camera name="watching" mode="targetbody" target="body" pos="1 -2.5 2"/>
    <body name="body" pos="0 0 1"><freejoint/>
      <camera name="aboard" pos="0 -2.5 .3" xyaxes="1 0 0 0 0 1"/>
      <camera name="beside" mode="trackcom" pos="0 -2.5 .3" xyaxes="1 0 0 0 0 1"/>
      <geom type="sphere" size=".15" pos="0 0 .6"/>
      <geom type="capsule" size=".08 .2" pos=".3 0 .3" euler="20 30 0"/>
      <geom type="capsule" size=".05 .3" pos="0 0 -.2" euler="70 30 40"/>
      <geom type="cylinder" size=".1 .15" pos="-.3 0 .3" euler="70 30 0"/>
      <geom type="cylinder" size=".02 .3" pos="0 -.3 -.2" euler="90 30 40"/>
      <geom type="ellipsoid" size=".1 .15 .2" pos="-.3 .1 -.2" euler="70 30 0"/>
      <geom type="box" size=".1 .15 .2" pos=".3 .1 -.2" euler="70 30 0"/>
    </body>
  </worldbody>
</mujoco>
"""


def random_poses(model, qpos, spread, number=POSES, seed=0):
    """MuJoCo's data at random poses: the base turned by about `spread` rad, hinges by 0.3, slides by 2 cm."""
    rng = np.random.default_rng(seed)
    scale = {int(mujoco.mjtJoint.mjJNT_HINGE): 0.3, int(mujoco.mjtJoint.mjJNT_SLIDE): 0.02}
    poses = []
    for _ in range(number):
        data = mujoco.MjData(model)
        data.qpos[:] = qpos
        for kind, start in zip(model.jnt_type, model.jnt_qposadr, strict=True):
            if kind == mujoco.mjtJoint.mjJNT_FREE:
                data.qpos[start + 3 : start + 7] += rng.normal(scale=spread, size=4)
            else:
                data.qpos[start] += rng.normal(scale=scale[int(kind)])
        mujoco.mj_normalizeQuat(model, data.qpos)
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_camlight(model, data)
        poses.append(data)
    return poses


def compare(model, poses, camera, target, geom_ids=None):
    """Ours and MuJoCo's ids and depth, [poses, H, W] each; `camera` is one for all poses, or makes one from `data`.

    Where two geoms have their surface in the same place either id is right.
    """
    views = [camera(data) if callable(camera) else camera for data in poses]
    batch = jax.tree.map(lambda *leaves: np.stack(leaves), *views)
    xpos = np.stack([data.geom_xpos for data in poses]).astype(np.float32)
    xmat = np.stack([data.geom_xmat.reshape(-1, 3, 3) for data in poses]).astype(np.float32)
    targets = np.tile(np.asarray(target, np.float32), (len(poses), 1))
    args = make_scene(model, geom_ids), xpos, xmat, batch, targets
    frames = render(*args, height=SIZE, width=SIZE)
    ours, depth = np.asarray(frames.segmentation), np.asarray(frames.depth)
    np.testing.assert_array_equal(np.asarray(render_masks(*args, height=SIZE, width=SIZE)), ours >= 0)
    np.testing.assert_array_equal(np.isinf(depth), ours < 0)
    ids, true_depth = [], []
    for data, view in zip(poses, views, strict=True):
        for part, parts in zip(rays.cast(model, data, view, target, SIZE), (ids, true_depth), strict=True):
            parts.append(part)
    ids, true_depth = np.stack(ids), np.stack(true_depth)
    hit = (ours >= 0) & (ids >= 0)
    tie = np.zeros_like(hit)
    tie[hit] = np.abs(depth[hit] - true_depth[hit]) < TIE
    return np.where(tie, ids, ours), depth, ids, true_depth


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def geom_scores(model, ours, ids, kinds):
    """IoU of each geom of some kinds in each pose where it covers enough pixels."""
    return {
        (pose, geom): iou(ours[pose] == geom, ids[pose] == geom)
        for pose in range(len(ids))
        for geom in np.unique(ids[ids >= 0])
        if model.geom_type[geom] in kinds and (ids[pose] == geom).sum() >= MIN_PIXELS
    }


def check_primitives(model, *args, **options):
    ours, depth, ids, true_depth = compare(model, *args, **options)
    assert (ours == ids).mean() >= AGREEMENT
    scores = geom_scores(model, ours, ids, range(mujoco.mjtGeom.mjGEOM_MESH))
    assert len(scores) >= len(ids)
    assert min(scores.values()) >= GEOM_IOU, min(scores.items(), key=lambda item: item[1])
    same = (ours == ids) & (ids >= 0)
    assert np.abs(depth[same] - true_depth[same]).max() <= DEPTH_ERROR


def test_every_primitive_type_is_drawn_where_mujoco_sees_it(strict_promotion):
    model = mujoco.MjModel.from_xml_string(PRIMITIVES)
    assert len(set(model.geom_type.tolist())) == 6
    poses = random_poses(model, model.qpos0, 1.0)
    check_primitives(model, poses, side_camera(3.0, 0.2, 1.2), (0.0, 0.0, 1.0), geom_ids=range(model.ngeom))


@pytest.mark.parametrize("name", ["fixed", "flat", "lens", "watching", "aboard", "beside"])
def test_cameras_of_the_model_see_what_mujoco_sees(name, strict_promotion):
    model = mujoco.MjModel.from_xml_string(PRIMITIVES)

    def camera(data):
        return model_camera(model, name, data.cam_xpos, data.cam_xmat)

    check_primitives(model, random_poses(model, model.qpos0, 0.3, 5), camera, (0, 0, 0), geom_ids=range(model.ngeom))


@pytest.mark.parametrize("name", ["fixed", "flat", "lens"])
def test_cameras_of_the_model_have_mujocos_frustum(name):
    """The oracle for the optics, which the rays above take from us, is the frustum that MuJoCo gives to OpenGL."""
    model = mujoco.MjModel.from_xml_string(PRIMITIVES)
    (data,) = random_poses(model, model.qpos0, 0.3, 1)
    view, drawn = mujoco.MjvCamera(), mujoco.MjvScene(model, 100)
    view.type, view.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, model.camera(name).id
    mujoco.mjv_updateScene(model, data, mujoco.MjvOption(), None, view, mujoco.mjtCatBit.mjCAT_ALL, drawn)
    lens = drawn.camera[0]
    origins, directions = (
        np.asarray(a) for a in pixel_rays(model_camera(model, name, data.cam_xpos, data.cam_xmat), 2, 2)
    )
    near = 1.0 if lens.orthographic else lens.frustum_near
    points = origins + near * directions - data.camera(name).xpos  # centres of the quarters of the near window
    up, right = lens.up, np.cross(lens.forward, lens.up)
    height, half_width = lens.frustum_top - lens.frustum_bottom, lens.frustum_width or lens.frustum_top
    rows = [lens.frustum_top - height / 4, lens.frustum_bottom + height / 4]
    columns = [lens.frustum_center - half_width / 2, lens.frustum_center + half_width / 2]
    np.testing.assert_allclose(points @ up, np.repeat(rows, 2).reshape(2, 2), rtol=1e-4, atol=2e-5 * height)
    np.testing.assert_allclose(points @ right, np.tile(columns, 2).reshape(2, 2), rtol=1e-4, atol=2e-5 * height)


@pytest.mark.parametrize(("robot", "distance", "focal"), [("unitree_h1", 3.0, 1.2), ("unitree_a1", 1.5, 1.4)])
def test_embedded_robot_is_drawn_where_mujoco_sees_it(robot, distance, focal, strict_promotion):
    model = mujoco.MjModel.from_xml_path(str(ASSETS / f"{robot}.xml"))
    without_floor(model)
    qpos = model.key_qpos[0]
    poses = random_poses(model, qpos, 0.1)
    check_primitives(model, poses, side_camera(distance, 0.1, focal), (0.0, 0.0, 0.6 * qpos[2]))


@pytest.mark.parametrize("robot", ["ant", "humanoid"])
def test_robots_of_brax_are_drawn_where_mujoco_sees_them(robot, strict_promotion):
    model = mujoco.MjModel.from_xml_path(str(resources.files("brax") / "envs" / "assets" / f"{robot}.xml"))
    without_floor(model)
    height = model.qpos0[2]
    check_primitives(model, random_poses(model, model.qpos0, 0.3), side_camera(3.5, 0.2, 1.2), (0.0, 0.0, height))


REAL = {  # which folder, file, group of the visual meshes, distance (m), focal length (image heights), height seen (m)
    "menagerie H1": ("menagerie", "unitree_h1/h1.xml", 2, 3.0, 1.3, 0.95),
    "LocoMuJoCo Talos": ("loco", "talos/talos.xml", 0, 3.0, 1.3, 0.95),
    "LocoMuJoCo A1": ("loco", "quadrupeds/unitree_a1_torque.xml", 0, 1.5, 1.6, 0.3),
}


SLOW = {"LocoMuJoCo Talos", "LocoMuJoCo A1"}  # many triangles


@pytest.mark.parametrize("robot", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in sorted(REAL)])
def test_real_meshes_are_drawn_where_mujoco_sees_them(robot, request, strict_promotion):
    source, file, group, distance, focal, height = REAL[robot]
    model = mujoco.MjModel.from_xml_path(str(request.getfixturevalue(source) / file))
    model.geom_group[(model.geom_group != group) | (model.geom_bodyid == 0)] = 3  # collision geoms hug the visual ones
    poses = random_poses(model, model.qpos0, 0.1)
    ours, depth, ids, true_depth = compare(model, poses, side_camera(distance, 0.0, focal), (0.0, 0.0, height))
    scores = [iou(a >= 0, b >= 0) for a, b in zip(ours, ids, strict=True)]
    assert np.mean(scores) >= MESH_IOU
    assert min(scores) >= MESH_IOU_EACH
    assert (ours == ids).mean() >= MESH_AGREEMENT
    same = (ours == ids) & (ids >= 0)
    assert (np.abs(depth[same] / true_depth[same] - 1) <= MESH_DEPTH_ERROR).mean() >= MESH_DEPTH_SHARE


def without_floor(model):
    model.geom_group[model.geom_bodyid == 0] = 3  # what stands still is not the robot


def test_a_box_that_reaches_behind_the_camera_is_drawn_where_mujoco_sees_it(strict_promotion):
    model = mujoco.MjModel.from_xml_string(
        '<mujoco><worldbody><body><freejoint/><geom type="box" size=".2 2 .1" pos=".5 -1.5 0"/>'
        '<geom type="box" size=".1 .1 .1" pos="-.3 0 0"/></body></worldbody></mujoco>'
    )
    check_primitives(model, random_poses(model, model.qpos0, 0.05, 20), side_camera(2.0, 0.0), (0.0, 0.0, 0.0))


def test_scaled_mesh_with_its_own_inertial_frame_is_drawn_where_mujoco_sees_it(strict_promotion):
    corners = " ".join(f"{x} {y} {z}" for x in (0, 1) for y in (0, 2) for z in (0, 3))
    model = mujoco.MjModel.from_xml_string(
        f'<mujoco><asset><mesh name="brick" vertex="{corners}" scale=".3 -.2 .1" refpos=".1 .2 .3" refquat="1 .5 0 0"/>'
        '</asset><worldbody><body><freejoint/><geom type="mesh" mesh="brick" pos=".1 .1 0" euler="20 30 40"/>'
        "</body></worldbody></mujoco>"
    )
    ours, _, ids, _ = compare(model, random_poses(model, model.qpos0, 1.0, 10), side_camera(2.0, 0.0), (0, 0, 0))
    assert min(iou(a >= 0, b >= 0) for a, b in zip(ours, ids, strict=True)) >= GEOM_IOU
