"""The picture that a video model starts from."""

import numpy as np
from jaxtyping import UInt8

from nil_jax import envs
from nil_jax.reference.align import nominal_camera
from nil_jax.rendering import still

BRIGHTEST = 0.8  # of the robot, in [0, 1]: a white one must stand out from the white background


def start_frame(env: envs.RobotEnv, size: int = 768, *, floor: bool = False) -> UInt8[np.ndarray, "S S 3"]:
    """The robot at its start pose from the side, on white, facing right.

    Args:
        env: the robot.
        size: width and height, px.
        floor: draw the floor, with a soft shadow, instead of plain white.
    """
    camera = nominal_camera(env.mj_model, env.start_qpos, env.robot_geom_ids)
    target = np.array([env.start_qpos[0], 0.0, 0.0])
    return still(
        env.mj_model,
        np.asarray(env.start_qpos),
        camera,
        target,
        height=size,
        width=size,
        geom_ids=env.robot_geom_ids,
        floor=floor,
        brightest=BRIGHTEST,
    )
