"""The fit of camera and start pose: known ones are recovered, and real first frames are matched."""

import copy

import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from nil_jax import envs
from nil_jax.reference import fit_start, read_video, segment_uniform
from nil_jax.reference.align import faces_left, nominal_camera, sagittal_joints, sagittal_partners, soft_iou
from nil_jax.reference.prepare import resized
from nil_jax.reference.segment import crop, square_crop
from nil_jax.rendering import Camera, pixel_rays

BIPED = """
<mujoco>
  <compiler angle="radian"/>
  <worldbody>
    <body name="torso" pos="0 0 1">
      <freejoint/>
      <geom type="box" size="0.09 0.13 0.22" pos="0 0 0.25" mass="10"/>
      <geom type="sphere" size="0.1" pos="0.05 0 0.6" mass="1"/>
      {legs}
    </body>
  </worldbody>
  <actuator>{motors}</actuator>
</mujoco>
"""
LEG = """
<body name="{side}_thigh" pos="0 {y} 0">
  <joint name="{side}_roll" axis="1 0 0" range="-0.5 0.5"/>
  <geom type="sphere" size="0.03" mass="0.1"/>
  <body name="{side}_swing">
    <joint name="{side}_hip" axis="0 1 0" range="-1 1"/>
    <geom type="capsule" size="0.06" fromto="0 0 0 0 0 -0.4" mass="3"/>
    <body name="{side}_shank" pos="0 0 -0.42">
      <joint name="{side}_knee" axis="0 1 0" range="0 1.8"/>
      <geom type="capsule" size="0.04" fromto="0 0 0 0 0 -0.4" mass="2"/>
      <geom type="sphere" size="0.05" pos="0.06 0 -0.42" mass="0.5"/>
    </body>
  </body>
</body>
"""


@pytest.fixture(scope="module")
def biped(tmp_path_factory):
    path = tmp_path_factory.mktemp("biped") / "biped.xml"
    legs = LEG.format(side="left", y=0.12) + LEG.format(side="right", y=-0.12)
    motors = "".join(f'<motor joint="{s}_{j}"/>' for s in ("left", "right") for j in ("roll", "hip", "knee"))
    path.write_text(BIPED.format(legs=legs, motors=motors))
    return envs.make(str(path))


def ray_mask(env, qpos, camera, size=64):
    """The robot's mask by MuJoCo's own ray caster."""
    model, data = env.mj_model, mujoco.MjData(env.mj_model)
    data.qpos[:] = qpos
    mujoco.mj_kinematics(model, data)
    rays = np.asarray(pixel_rays(camera, size, size)[1], np.float64).reshape(-1, 3)
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    eye = np.asarray(camera.position, np.float64) + np.array([qpos[0], 0.0, 0.0])
    ids, distance = np.zeros(len(rays), np.int32), np.zeros(len(rays))
    mujoco.mj_multiRay(model, data, eye, rays.ravel(), None, 1, -1, ids, distance, None, len(rays), 100.0)
    return np.isin(ids, env.robot_geom_ids).reshape(size, size)


def test_sagittal_joints_and_their_partners_are_found(biped):
    joints = sagittal_joints(biped.mj_model, biped.start_qpos)
    assert [biped.joint_names[j] for j in joints] == ["left_hip", "left_knee", "right_hip", "right_knee"]
    partners, sign = sagittal_partners(biped.mj_model, joints)
    np.testing.assert_array_equal([partners, sign], [[2, 3, 0, 1], np.ones(4)])
    partners, sign = sagittal_partners(biped.mj_model, joints[:3])  # a knee without its twin
    np.testing.assert_array_equal([partners, sign], [[2, 1, 0], np.ones(3)])
    model = copy.deepcopy(biped.mj_model)
    model.jnt_axis[[model.joint(name).id for name in ("right_hip", "right_knee")]] *= -1  # sides with opposite axes
    np.testing.assert_array_equal(sagittal_partners(model, joints)[1], -np.ones(4))


def test_soft_iou_agrees_with_counting_pixels():
    rng = np.random.default_rng(0)
    masks, mask = rng.random((5, 16, 16)) < 0.4, rng.random((16, 16)) < 0.4
    expected = [(m & mask).sum() / (m | mask).sum() for m in masks]
    np.testing.assert_allclose(soft_iou(jnp.asarray(masks), jnp.asarray(mask), 1), expected, rtol=1e-6)
    blocks = [m.reshape(4, 4, 4, 4).mean((1, 3)) for m in masks]
    goal = mask.reshape(4, 4, 4, 4).mean((1, 3))
    expected = [np.minimum(b, goal).sum() / np.maximum(b, goal).sum() for b in blocks]
    np.testing.assert_allclose(soft_iou(jnp.asarray(masks), jnp.asarray(mask), 4), expected, rtol=1e-5)


def standing(biped, hips, knees):
    """The biped on the floor, with angles (left, right) in rad."""
    qpos = np.array(biped.start_qpos)
    for side, hip, knee in zip(("left", "right"), hips, knees, strict=True):
        qpos[7 + biped.joint_names.index(f"{side}_hip")] = hip
        qpos[7 + biped.joint_names.index(f"{side}_knee")] = knee
    return biped.on_floor(qpos)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_known_camera_and_pose_are_recovered(biped, seed):
    rng = np.random.default_rng(seed)
    nominal = nominal_camera(biped.mj_model, biped.start_qpos, biped.robot_geom_ids)
    zoom, offset = np.exp(rng.uniform(-0.15, 0.05)), rng.uniform(-0.04, 0.04, 2)
    focal, center = nominal.focal * np.float32(zoom), nominal.center + offset.astype(np.float32)
    camera = Camera(position=nominal.position, rotation=nominal.rotation, focal=focal, center=center)
    hips, knees = rng.uniform(0.2, 0.6, 2) * [1, -1], rng.uniform(0.0, 0.7, 2)
    mask = ray_mask(biped, standing(biped, hips, knees), camera)
    parts = []
    fit = fit_start(biped, mask, num_starts=8, seed=seed, progress=parts.append)
    assert fit.iou >= 0.95
    again = ray_mask(biped, fit.start_qpos, fit.camera)
    assert (again & mask).sum() / (again | mask).sum() >= 0.95
    left, right = (fit.start_qpos[7 + biped.joint_names.index(f"{side}_hip")] for side in ("left", "right"))
    np.testing.assert_allclose((left, right), hips, atol=0.1)  # rad: so the sides are told apart too
    low, high = biped.joint_range.T
    assert (fit.start_qpos[7:] >= low - 1e-6).all() and (fit.start_qpos[7:] <= high + 1e-6).all()
    assert abs(float(biped.lowest_point(*envs.forward_kinematics(biped.mjx_model, jnp.asarray(fit.start_qpos))))) < 1e-4
    assert parts == sorted(parts) and parts[-1] == pytest.approx(1.0)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_robot_that_faces_left_is_told_from_one_that_faces_right(biped, seed):
    rng = np.random.default_rng(seed)
    qpos = np.array(biped.start_qpos)
    for side in ("left", "right"):
        qpos[7 + biped.joint_names.index(f"{side}_hip")] = rng.uniform(-0.4, 0.4)
        qpos[7 + biped.joint_names.index(f"{side}_knee")] = rng.uniform(0.2, 0.7)
    mask = ray_mask(biped, qpos, nominal_camera(biped.mj_model, biped.start_qpos, biped.robot_geom_ids))
    assert not faces_left(biped, mask)
    assert faces_left(biped, mask[:, ::-1])


def test_an_empty_mask_cannot_be_fitted(biped):
    with pytest.raises(ValueError, match="empty mask"):
        fit_start(biped, np.zeros((64, 64), bool))


# The robots here are made of primitives and the clips were generated from the real meshes: that is what bounds the IoU.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("clip", "robot", "reach"), [("h1_walk_kling", "unitree_h1", 0.8), ("a1_walk_kling", "unitree_a1", 0.75)]
)
def test_the_first_frame_of_a_real_clip_is_matched(shared, clip, robot, reach):
    frames = read_video(shared / "videos" / f"{clip}.mp4").frames[::10]
    masks = segment_uniform(frames)
    mask = resized(crop(masks[:1], square_crop(masks), False)[0], 64)
    assert fit_start(envs.make(robot), mask, num_starts=8).iou >= reach
