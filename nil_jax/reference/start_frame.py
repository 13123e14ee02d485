"""The picture that a video model starts from."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from nil_jax import envs
from nil_jax.reference.align import nominal_camera
from nil_jax.rendering import make_scene, render

SUPERSAMPLING = 3  # rays across a pixel: anti-aliasing


def start_frame(env: envs.RobotEnv, size: int = 768, *, floor: bool = False) -> UInt8[np.ndarray, "S S 3"]:
    """The robot at its start pose from the side, on white, facing right.

    Args:
        env: the robot.
        size: width and height, px.
        floor: draw the floor instead of plain white.
    """
    geom_xpos, geom_xmat = envs.forward_kinematics(env.mjx_model, jnp.asarray(env.start_qpos))
    camera = nominal_camera(env.mj_model, env.start_qpos, env.robot_geom_ids)
    target = jnp.zeros((1, 3)).at[0, 0].set(env.start_qpos[0])
    scene, side = make_scene(env.mj_model, env.robot_geom_ids), size * SUPERSAMPLING
    picture = render(scene, geom_xpos[None], geom_xmat[None], camera, target, height=side, width=side, floor=floor).rgb
    return np.asarray(Image.fromarray(np.asarray(picture[0])).resize((size, size), Image.Resampling.BOX))
