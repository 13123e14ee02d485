"""Families of agent motions around a gait: graded ones, whose distance to it is known, and plainly wrong ones.

Axes: M clips, T ticks, D coordinates (`motions`), J joints.
"""

from collections.abc import Callable
from dataclasses import dataclass

import mujoco
import numpy as np
from motions import Gait

from nil_jax.envs import Body
from nil_jax.envs.body import CLEARANCE, JOINTS

RATE = 25.0  # Hz, of ticks
ANCHOR = 0.5  # s before a window's end, where a motion of another speed is in phase
NOISE_BANDS = 4  # sines of one joint's noise
NOISE_HZ = (0.3, 3.0)
STANDING_NOISE = 0.05  # rad
PUSH, FIRMER = (1.0, 2.5), 1.3  # m/s that a falling robot starts with, with turns about as fast; growth if it stands
FALL_TILT, FALL_SECONDS = 0.4, 2.0  # rad from which on a robot falls, s after which it is taken to stand
FALL_TICKS = 4, 30  # a window ends as many ticks after the tilt
MARCH_HZ = (0.7, 1.3)
SAGITTAL = {  # parts of joint names: which joints count as what
    "hip": ("hip_pitch", "hip_flexion", "thigh"),
    "knee": ("knee", "calf"),
    "ankle": ("ankle",),
    "arm": ("shoulder_pitch", "elbow", "arm_elx", "arm_shx"),
}
LIFT = {"hip_pitch": -1.0, "hip_flexion": -1.0, "knee": 2.0, "ankle": -1.0, "thigh": 1.0, "calf": -2.0}  # of a leg


@dataclass(frozen=True)
class Clips:
    """Windows of one family, each compared with the reference's window that ends at `phase`."""

    body: Body
    qpos: np.ndarray  # [M, T, nq]
    phase: np.ndarray  # [M] s of the gait at the window's end
    strength: np.ndarray  # [M] of the deviation, in the family's unit; 0 for constant families


def ticks(length: int) -> np.ndarray:
    """Times of the ticks of a window, s from its end."""
    return np.arange(1 - length, 1) / RATE


def phases(gait: Gait, parts: np.ndarray) -> np.ndarray:
    """Parts of a cycle in [0, 1) as times of the reference's frames, s."""
    return np.floor(parts * np.floor(gait.period * RATE)) / RATE


def graded(gait: Gait, stand: np.ndarray, count: int, length: int, rng: np.random.Generator) -> dict[str, Clips]:
    """Families whose distance grows with their strength, `count` clips each, spread over strengths and phases."""

    def spread(low: float, high: float) -> np.ndarray:
        return low + (high - low) * (rng.permutation(count) + rng.random(count)) / count

    def family(make: Callable, low: float, high: float) -> Clips:
        strength, phase = spread(low, high), phases(gait, spread(0, 1))
        coords = make(phase[:, None] + ticks(length), strength[:, None, None], phase[:, None])
        return Clips(gait.body, gait.body.qpos(coords), phase, strength)

    mean, half = gait.cycle.mean(0), gait.period / 2
    made = {
        "time shift": family(lambda t, s, end: gait.at(t + s[..., 0]), -half, half),
        "speed": family(lambda t, s, end: gait.at(end - ANCHOR + (t - end + ANCHOR) * s[..., 0]), 0.4, 2.0),
        "joint noise": family(lambda t, s, end: gait.at(t) + s * smooth_noise(gait.body, t, rng), 0.0, 0.5),
        "amplitude": family(lambda t, s, end: mean + s * (gait.at(t) - mean), 0.0, 1.6),
        "standing blend": family(lambda t, s, end: (1 - s) * gait.at(t) + s * stand, 0.0, 1.0),
    }
    for part, names in SAGITTAL.items():
        joints = [j for j, name in enumerate(gait.body.env.joint_names) if any(key in name for key in names)]
        if joints:
            which = JOINTS + rng.choice(joints, count)[:, None, None]
            error = which == np.arange(gait.cycle.shape[1])
            made[f"{part} error"] = family(lambda t, s, end, error=error: gait.at(t) + s * error, -0.7, 0.7)
    return made


def sweeps(gait: Gait, length: int, steps: int, starts: int) -> dict[str, Clips]:
    """Deviations that grow evenly from 0 on, each both ways and from `starts` phases of the gait."""
    names = gait.body.env.joint_names
    errors = {}
    for part in ("hip", "knee"):
        joint = next(j for j, name in enumerate(names) if any(key in name for key in SAGITTAL[part]))
        errors[f"{part} error"] = np.arange(gait.cycle.shape[1]) == JOINTS + joint
    found = {}
    for name, reach in (("time shift", gait.period / 4), ("hip error", 1.0), ("knee error", 1.0)):
        size, sign, part = np.meshgrid(np.linspace(0, reach, steps), (-1.0, 1.0), np.arange(starts) / starts)
        strength, phase = (size * sign).ravel(), phases(gait, part.ravel())
        times = phase[:, None] + ticks(length)
        deviation = strength[:, None]
        coords = gait.at(times + deviation) if name == "time shift" else gait.at(times)
        coords = coords + deviation[..., None] * errors.get(name, 0.0)
        found[name] = Clips(gait.body, gait.body.qpos(coords), phase, strength)
    return found


def smooth_noise(body: Body, times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Noise of the joints [M, T, D], of unit variance and slow against the ticks."""
    shape = (len(times), NOISE_BANDS, JOINTS + len(body.env.joint_names))
    angular, offset = 2 * np.pi * rng.uniform(*NOISE_HZ, shape), rng.uniform(0, 2 * np.pi, shape)
    waves = np.sin(angular[:, :, None] * times[:, None, :, None] + offset[:, :, None])  # [M, bands, T, D]
    noise = waves.sum(1) * np.sqrt(2 / NOISE_BANDS)
    noise[..., :JOINTS] = 0
    return noise


def constant(
    gait: Gait,
    stands: np.ndarray,
    count: int,
    length: int,
    rng: np.random.Generator,
    skill: Gait | None = None,
    stranger: Gait | None = None,
) -> dict[str, Clips]:
    """Families that are wrong as a whole: no clip of them may be worth as much as one that is nearly right.

    Args:
        gait: The reference's.
        stands: Poses [S, D] to stand in.
        count: Clips of each family.
        length: Ticks of a clip.
        rng: Draws them.
        skill: Another gait of the same robot.
        stranger: A gait of another robot.
    """
    body, phase = gait.body, phases(gait, (rng.permutation(count) + rng.random(count)) / count)
    end, back = phase[:, None], ticks(length)

    def clips(coords: np.ndarray, body: Body = body) -> Clips:
        return Clips(body, body.qpos(coords), phase, np.zeros(count))

    still = stands[np.arange(count) % len(stands)].copy()
    still[:, JOINTS:] += rng.normal(scale=STANDING_NOISE, size=still[:, JOINTS:].shape)
    pivot = end + rng.choice(back[-8:], (count, 1))  # one tick of the window is right
    anywhere = rng.random((count, 1))
    made = {
        "standing": clips(np.repeat(still[:, None], length, axis=1)),
        "falling": Clips(body, falls(body, count, length, rng), phase, np.zeros(count)),
        "marching": clips(march(body, stands[0], end + back, rng)),
        "backwards": clips(gait.at(2 * pivot - (end + back))),
    }
    if skill:
        made["other skill"] = clips(skill.at(anywhere * skill.period + back))
    if stranger:
        made["other robot"] = clips(stranger.at(anywhere * stranger.period + back), stranger.body)
    return made


def march(body: Body, stand: np.ndarray, times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Lifting the knees in turn with the feet below the hips, [M, T, D]."""
    names, count = body.env.joint_names, len(times)
    lift = np.array([next((value for key, value in LIFT.items() if key in name), 0.0) for name in names])
    # Diagonal legs of a quadruped move together.
    left = np.array([name.startswith(("left", "FL", "RR")) or name.endswith("_l") for name in names])
    phase = 2 * np.pi * (rng.uniform(*MARCH_HZ, (count, 1)) * times + rng.random((count, 1)))
    swing = np.maximum(np.sin(phase[..., None] + np.pi * left), 0) * rng.uniform(0.3, 0.7, (count, 1, 1))
    coords = np.tile(stand, (*times.shape, 1))
    coords[..., JOINTS:] += lift * swing
    coords[..., CLEARANCE] = 0
    return coords


def falls(body: Body, count: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """Windows [count, length, nq] of robots that were pushed while standing, and whose servos hold the standing pose.

    They come from MuJoCo's engine.
    """
    env, model, windows = body.env, body.env.mj_model, []
    steps = round(1 / (RATE * model.opt.timestep))
    hold, push = env.default_qpos[7:][env.prepared.actuated], 1.0
    while len(windows) < count:
        data = mujoco.MjData(model)
        data.qpos[:], data.ctrl[:] = env.default_qpos, hold
        angle, speed = rng.uniform(0, 2 * np.pi), push * rng.uniform(*PUSH)
        data.qvel[:2], data.qvel[3:6] = speed * np.array([np.cos(angle), np.sin(angle)]), push * rng.normal(size=3)
        poses, last = [], round(FALL_SECONDS * RATE)
        fallen = last
        while len(poses) < min(last, fallen + FALL_TICKS[1]):
            mujoco.mj_step(model, data, steps)
            poses.append(data.qpos.copy())
            if fallen == last and data.xmat[env.base_body_id, 8] < np.cos(FALL_TILT):
                fallen = len(poses) - 1
        if len(poses) < fallen + FALL_TICKS[0] + 1:
            push *= FIRMER  # it still stands
            continue
        end = int(rng.integers(fallen + FALL_TICKS[0], len(poses)))
        windows.append(np.array(poses)[np.maximum(np.arange(end + 1 - length, end + 1), 0)])
    return np.array(windows, np.float32)
