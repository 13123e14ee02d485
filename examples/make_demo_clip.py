"""Renders the demo's reference clip: a scripted, prowling trot of the embedded Unitree A1.

The clip is synthetic: no video model and no motion data are behind it. The feet follow a plain cycle (half on the
floor, half in the air), inverse kinematics of the two-link legs gives the joint angles, and the renderer draws the
poses, moved along without physics. The body is carried low, so that standing still looks clearly different.

    python examples/make_demo_clip.py examples/a1_prowl.mp4
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

import nil_jax
from nil_jax.reference import write_video
from nil_jax.reference.align import nominal_camera
from nil_jax.rendering import make_scene, render

FPS, SECONDS, SIZE = 25, 4.0, 256
PERIOD, SPEED = 0.64, 0.4  # s per cycle, m/s
HEIGHT, LIFT = 0.2, 0.05  # m: of the hips over the floor, of the feet in the air
LINK = 0.2  # m: length of thigh and of calf
FOOT_RADIUS = 0.02  # m
PHASES = {"FR": 0.0, "RL": 0.0, "FL": 0.5, "RR": 0.5}  # diagonal legs together


def foot_path(phase: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Foot position relative to its hip, m: forward x and down z, for a phase in [0, 1)."""
    stride = SPEED * PERIOD / 2  # the floor carries the foot back during half a period
    stance = phase < 0.5
    part = np.where(stance, phase / 0.5, (phase - 0.5) / 0.5)
    x = np.where(stance, stride * (0.5 - part), stride * (part - 0.5))
    z = HEIGHT - FOOT_RADIUS - np.where(stance, 0.0, LIFT * np.sin(np.pi * part))
    return x, z


def leg_angles(x: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Thigh and calf angles (rad) that put the foot of a two-link leg at (x forward, z down) from the hip."""
    reach = np.hypot(x, z)
    knee = -2 * np.arccos(np.clip(reach / (2 * LINK), -1, 1))
    return -np.arctan2(x, z) - knee / 2, knee


def poses(env: nil_jax.envs.RobotEnv) -> np.ndarray:
    """[T, nq] poses of the gait."""
    times = np.arange(round(FPS * SECONDS)) / FPS
    qpos = np.tile(env.default_qpos, (len(times), 1))
    qpos[:, 0] = SPEED * times
    for leg, offset in PHASES.items():
        thigh, calf = leg_angles(*foot_path((times / PERIOD + offset) % 1.0))
        for joint, angle in (("hip", 0.0), ("thigh", thigh), ("calf", calf)):
            qpos[:, 7 + env.joint_names.index(f"{leg}_{joint}_joint")] = angle
    return qpos


def main(path: str) -> None:
    """Draws the gait and writes the clip."""
    env = nil_jax.envs.make("unitree_a1")
    qpos = jnp.stack([env.on_floor(pose) for pose in poses(env)])
    kinematics = jax.jit(jax.vmap(lambda q: nil_jax.envs.forward_kinematics(env.mjx_model, q)))
    geom_xpos, geom_xmat = kinematics(qpos)
    target = qpos[:, :3] * jnp.array([[1.0, 0.0, 0.0]])
    camera = nominal_camera(env.mj_model, env.start_qpos, env.robot_geom_ids)
    scene = make_scene(env.mj_model, env.robot_geom_ids)
    frames = render(scene, geom_xpos, geom_xmat, camera, target, height=SIZE, width=SIZE).rgb
    write_video(path, np.asarray(frames), FPS)


if __name__ == "__main__":
    main(sys.argv[1])
