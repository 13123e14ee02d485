"""Pictures against MuJoCo's own ray caster: rays through the same pixel centres, ids and depth compared pixel by pixel.

`mj_ray` pixel by pixel, because `mj_multiRay` skips a drawn geom when the ray misses the box around the body's
collision geoms.
"""

from pathlib import Path

import mujoco
import numpy as np
import pytest

from nil_jax.rendering import make_scene, pixel_rays, render, render_masks, side_camera

SIZE = 128
POSES = 20
MIN_PIXELS = 30  # smaller geoms consist of edge pixels only
GEOM_IOU = 0.98
AGREEMENT = 0.999  # the rest: float32 against float64 on silhouettes
DEPTH_ERROR = 1e-3  # m, float32 at grazing incidence; 5e-5 is typical
MESH_IOU = 0.95  # convex pieces stand for the triangles
ASSETS = Path(__file__).resolve().parents[2] / "envs" / "assets"

PRIMITIVES = """
<mujoco>
  <worldbody>
    <geom type="plane" size=".4 .3 .1" pos="0 .6 1" euler="60 20 0"/>
    <body pos="0 0 1"><freejoint/>
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


def random_poses(model, qpos, spread, seed=0):
    """Positions [20, G, 3] and orientations [20, G, 3, 3] of the geoms, and MuJoCo's data at each pose."""
    rng = np.random.default_rng(seed)
    poses = []
    for _ in range(POSES):
        data = mujoco.MjData(model)
        data.qpos[:] = qpos
        data.qpos[3:7] += rng.normal(scale=spread, size=4)
        data.qpos[3:7] /= np.linalg.norm(data.qpos[3:7])
        data.qpos[7:] += rng.normal(scale=0.3, size=model.nq - 7)
        mujoco.mj_kinematics(model, data)
        poses.append(data)
    xpos = np.stack([data.geom_xpos for data in poses]).astype(np.float32)
    xmat = np.stack([data.geom_xmat.reshape(-1, 3, 3) for data in poses]).astype(np.float32)
    return poses, xpos, xmat


def cast(model, data, camera, target):
    """Geom ids [H, W] and depth along the optical axis [H, W] by MuJoCo."""
    rays = np.asarray(pixel_rays(camera, SIZE, SIZE), np.float64).reshape(-1, 3)
    eye = np.asarray(camera.position, np.float64) + target
    groups = np.array([1, 1, 1, 0, 0, 0], np.uint8)
    ids, depth, hit = np.full(len(rays), -1), np.full(len(rays), np.inf), np.zeros(1, np.int32)
    for i, ray in enumerate(rays):
        length = np.linalg.norm(ray)
        distance = mujoco.mj_ray(model, data, eye, ray / length, groups, 1, -1, hit)
        if distance >= 0:
            ids[i], depth[i] = hit[0], distance / length
    return ids.reshape(SIZE, SIZE), depth.reshape(SIZE, SIZE)


def compare(model, qpos, spread, camera, target, geom_ids=None):
    """Ours and MuJoCo's ids and depth, [20, H, W] each."""
    scene = make_scene(model, geom_ids)
    poses, xpos, xmat = random_poses(model, qpos, spread)
    targets = np.tile(np.asarray(target, np.float32), (POSES, 1))
    frames = render(scene, xpos, xmat, camera, targets, height=SIZE, width=SIZE)
    masks = render_masks(scene, xpos, xmat, camera, targets, height=SIZE, width=SIZE)
    ids, depth = (np.stack(parts) for parts in zip(*(cast(model, d, camera, target) for d in poses), strict=True))
    ours = np.asarray(frames.segmentation)
    np.testing.assert_array_equal(np.asarray(masks), ours >= 0)
    np.testing.assert_array_equal(np.isinf(np.asarray(frames.depth)), ours < 0)
    return ours, np.asarray(frames.depth), ids, depth


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def check_primitives(*args):
    ours, depth, ids, true_depth = compare(*args)
    assert (ours == ids).mean() >= AGREEMENT
    scores = {
        (pose, geom): iou(ours[pose] == geom, ids[pose] == geom)
        for pose in range(POSES)
        for geom in np.unique(ids[ids >= 0])
        if (ids[pose] == geom).sum() >= MIN_PIXELS
    }
    assert len(scores) >= POSES
    assert min(scores.values()) >= GEOM_IOU, min(scores.items(), key=lambda item: item[1])
    same = (ours == ids) & (ids >= 0)
    assert np.abs(depth[same] - true_depth[same]).max() <= DEPTH_ERROR


def test_every_primitive_type_is_drawn_where_mujoco_sees_it(strict_promotion):
    model = mujoco.MjModel.from_xml_string(PRIMITIVES)
    assert len(set(model.geom_type.tolist())) == 6
    check_primitives(model, model.qpos0, 1.0, side_camera(3.0, 0.2, 1.2), (0.0, 0.0, 1.0), range(model.ngeom))


@pytest.mark.parametrize(("robot", "distance", "focal"), [("unitree_h1", 3.0, 1.2), ("unitree_a1", 1.5, 1.4)])
def test_embedded_robot_is_drawn_where_mujoco_sees_it(robot, distance, focal, strict_promotion):
    model = mujoco.MjModel.from_xml_path(str(ASSETS / f"{robot}.xml"))
    model.geom_group[model.geom_bodyid == 0] = 3  # the floor is not the robot
    qpos = model.key_qpos[0]
    check_primitives(model, qpos, 0.1, side_camera(distance, 0.1, focal), (0.0, 0.0, 0.6 * qpos[2]))


def test_real_meshes_are_drawn_where_mujoco_sees_them(shared, strict_promotion):
    model = mujoco.MjModel.from_xml_path(str(shared / "menagerie" / "unitree_h1" / "h1.xml"))
    target = (0.0, 0.0, 1.0)
    ours, depth, ids, true_depth = compare(model, model.qpos0, 0.1, side_camera(3.0, 0.0, 1.3), target)
    scores = [iou(a >= 0, b >= 0) for a, b in zip(ours, ids, strict=True)]
    assert min(scores) >= MESH_IOU, scores
    both = (ours >= 0) & (ids >= 0)
    assert (ours[both] == ids[both]).mean() >= 0.96  # the rest lies along the seams between links
    same = both & (ours == ids)
    assert np.abs(depth[same] - true_depth[same]).mean() <= 0.01  # m: hollows are filled by the pieces


def test_a_box_that_reaches_behind_the_camera_is_drawn_where_mujoco_sees_it(strict_promotion):
    model = mujoco.MjModel.from_xml_string(
        '<mujoco><worldbody><body><freejoint/><geom type="box" size=".2 2 .1" pos=".5 -1.5 0"/>'
        '<geom type="box" size=".1 .1 .1" pos="-.3 0 0"/></body></worldbody></mujoco>'
    )
    check_primitives(model, model.qpos0, 0.05, side_camera(2.0, 0.0), (0.0, 0.0, 0.0))
