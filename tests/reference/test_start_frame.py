"""The picture that a video model starts from: what is in it, and that the next stages can read it."""

import jax.numpy as jnp
import mujoco
import numpy as np

from nil_jax.reference import segment_uniform, start_frame
from nil_jax.reference.align import nominal_camera
from nil_jax.rendering import make_scene, render_masks

SIZE = 128
IOU = 0.9  # half-covered pixels at the outline of a small picture count as robot, and small cracks are closed


def expected(env):
    """The robot's pixels by the training renderer, which the fit compares a clip's first frame with."""
    data = mujoco.MjData(env.mj_model)
    data.qpos[:] = env.start_qpos
    mujoco.mj_kinematics(env.mj_model, data)
    geom_xpos, geom_xmat = (jnp.asarray(x, jnp.float32) for x in (data.geom_xpos, data.geom_xmat.reshape(-1, 3, 3)))
    camera = nominal_camera(env.mj_model, env.start_qpos, env.robot_geom_ids)
    target = jnp.zeros((1, 3)).at[0, 0].set(env.start_qpos[0])
    scene = make_scene(env.mj_model, env.robot_geom_ids)
    masks = render_masks(scene, geom_xpos[None], geom_xmat[None], camera, target, height=SIZE, width=SIZE)
    return np.asarray(masks[0])


def test_start_frame_is_segmented_into_what_the_training_renderer_draws(tiny_env):
    robot, tiny = expected(tiny_env), {}
    for floor in (False, True):
        tiny[floor] = start_frame(tiny_env, SIZE, floor=floor)
        mask = segment_uniform(tiny[floor][None])[0]
        assert (mask & robot).sum() / (mask | robot).sum() >= IOU
    assert (tiny[False][~robot] == 255).mean() > 0.95
    assert (tiny[True][SIZE - 1] < 255).all()


def test_white_robot_stands_out_from_the_white_background(tiny_env):
    rgba = tiny_env.mj_model.geom_rgba.copy()
    try:
        tiny_env.mj_model.geom_rgba[tiny_env.robot_geom_ids] = 1.0
        picture = start_frame(tiny_env, SIZE)
    finally:
        tiny_env.mj_model.geom_rgba[:] = rgba
    assert picture[expected(tiny_env)].max(axis=-1).mean() < 220
    mask, robot = segment_uniform(picture[None])[0], expected(tiny_env)
    assert (mask & robot).sum() / (mask | robot).sum() >= IOU
