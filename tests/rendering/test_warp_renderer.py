"""Warp's renderer against ours: same poses, same camera."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from nil_jax import envs
from nil_jax.rendering import Camera, JaxRenderer, WarpRenderer, make_scene, side_camera

# Both cast one ray through the centre of each pixel, so only rays that graze an edge may differ.
LOWEST_IOU = 0.99
# Of 255, mean over the robot: Warp's lamp at the camera shines along the optical axis, ours along each ray.
COLOUR_TOLERANCE = 8.0
POSES, SPACING = 4, 1.5  # m between the robots, which the camera must follow


def poses(env) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Frames of the geoms in a handful of poses, and the point to follow."""
    rng, data = np.random.default_rng(0), mujoco.MjData(env.mj_model)
    rows = []
    for i in range(POSES):
        data.qpos[:] = env.start_qpos
        data.qpos[0] = SPACING * i
        data.qpos[3:7] += 0.3 * rng.normal(size=4)
        data.qpos[7:] += 0.3 * rng.normal(size=env.mj_model.nq - 7)
        mujoco.mj_kinematics(env.mj_model, data)
        rows.append((data.geom_xpos.copy(), data.geom_xmat.reshape(-1, 3, 3).copy(), [data.qpos[0], 0, 0]))
    return tuple(jnp.asarray(np.stack(part), jnp.float32) for part in zip(*rows, strict=True))


def turned(camera: Camera, yaw: float) -> Camera:
    """The camera, moved around the robot."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    turn = jnp.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], jnp.float32)
    return Camera(turn @ camera.position, turn @ camera.rotation, camera.focal, camera.center)


def both(env, camera: Camera) -> tuple[JaxRenderer, WarpRenderer]:
    scene = make_scene(env.mj_model, env.robot_geom_ids)
    return JaxRenderer(scene, camera), WarpRenderer(env.mj_spec, env.robot_geom_ids, camera)


@pytest.mark.parametrize("robot", ["unitree_h1", "unitree_a1"])
def test_masks_are_those_of_our_renderer(robot):
    env = envs.make(robot)
    height = float(env.default_qpos[2])
    # A lens that is not centred and an image that is not square: nothing may rest on symmetry.
    camera = turned(side_camera(3 * height, height, focal=1.2, center=(0.42, 0.6)), 0.3)
    masks = [np.asarray(renderer.masks(*poses(env), height=48, width=80)) for renderer in both(env, camera)]
    iou = np.sum(masks[0] & masks[1], axis=(1, 2)) / np.sum(masks[0] | masks[1], axis=(1, 2))
    assert masks[0].mean(axis=(1, 2)).min() > 0.01  # each pose is seen
    assert iou.min() >= LOWEST_IOU


def test_pictures_have_our_colours_on_white(tiny_env):
    camera = side_camera(2.0, 0.3, focal=2.5)
    inputs = poses(tiny_env)
    ours, theirs = both(tiny_env, camera)
    mask = np.asarray(ours.masks(*inputs, height=64, width=64))
    pictures = [np.asarray(r.pictures(*inputs, height=64, width=64)).astype(int) for r in (ours, theirs)]
    assert pictures[1].shape == (POSES, 64, 64, 3) and (pictures[1][~mask] == 255).mean() > 0.999
    assert np.abs(pictures[0] - pictures[1])[mask].mean() < COLOUR_TOLERANCE
    assert (pictures[1][mask] < 250).any(axis=-1).all()  # as `report` tells the robot from its background


def test_every_number_of_robots_and_size_gets_its_own_context(tiny_env):
    inputs = poses(tiny_env)
    renderer = both(tiny_env, side_camera(2.0, 0.3, focal=2.5))[1]
    whole = renderer.masks(*inputs, height=32, width=32)
    for i in range(POSES):
        one = renderer.masks(*(part[i : i + 1] for part in inputs), height=32, width=32)
        np.testing.assert_array_equal(one[0], whole[i])
    assert renderer.masks(*inputs, height=16, width=24).shape == (POSES, 16, 24)


def test_a_compiled_loop_sees_each_pose_only_when_it_looks(tiny_env):
    inputs = jax.tree.map(lambda part: part[:, None], poses(tiny_env))  # one robot, pose after pose
    renderer = both(tiny_env, side_camera(2.0, 0.3, focal=2.5))[1]
    looks = jnp.array([True, False, True, True])

    def look(pose):
        return renderer.masks(*pose, height=32, width=32)

    @jax.jit
    def run(inputs):
        def step(_, row):
            looking, pose = row
            return None, jax.lax.cond(looking, look, lambda pose: jnp.zeros((1, 32, 32), bool), pose)

        return jax.lax.scan(step, None, (looks, inputs))[1]

    expected = [np.asarray(look(jax.tree.map(lambda part, i=i: part[i], inputs))) for i in range(POSES)]
    np.testing.assert_array_equal(run(inputs), np.stack(expected) * np.asarray(looks)[:, None, None, None])
