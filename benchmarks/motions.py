"""Real gaits from motion capture, as coordinates of `nil_jax.envs.Body`.

Axes: P samples of a gait cycle, D coordinates.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

import nil_jax
from nil_jax.envs import Body
from nil_jax.envs.body import JOINTS

MOCAP_RATE = 500.0  # Hz
HALF_CYCLE = (0.15, 0.7)  # s, where the half cycle is looked for


@dataclass(frozen=True)
class Recording:
    """A file of motion capture and how its names map to those of a robot."""

    file: str
    base: str  # what the base's coordinates are called
    height: str  # its vertical and its lateral slide
    lateral: str
    euler: str  # order of the base's turns, scipy's intrinsic axes
    turns: tuple[tuple[str, float], ...]  # their names and signs
    joints: dict[str, str]  # name of a joint in the file -> on the robot, where they differ
    skip: int = 0  # samples at the start


HUMANOID = {
    "base": "pelvis",
    "height": "ty",
    "lateral": "tz",
    "euler": "YXZ",
    "turns": (("tilt", -1.0), ("list", 1.0), ("rotation", 1.0)),
}
H1 = {
    f"{there}_{side[0]}": f"{side}_{here}"
    for side in ("left", "right")
    for there, here in (
        ("hip_rotation", "hip_yaw"),
        ("hip_adduction", "hip_roll"),
        ("hip_flexion", "hip_pitch"),
        ("knee_angle", "knee"),
        ("ankle_angle", "ankle"),
    )
} | {
    f"{side[0]}_arm_{there}": f"{side}_shoulder_{here}"
    for side in ("left", "right")
    for there, here in (("shy", "pitch"), ("shx", "roll"), ("shz", "yaw"))
}
H1["back_bkz"] = "torso"
RECORDINGS = {
    "h1 walk": Recording("h1_walk.npz", joints=H1, **HUMANOID),
    "h1 run": Recording("h1_run.npz", joints=H1, **HUMANOID),
    "talos walk": Recording("talos_walk.npz", joints={}, **HUMANOID),
    # The third segment, without its start from rest.
    "a1 walk": Recording(
        "a1_walk.npz",
        "trunk",
        "tz",
        "ty",
        "XYZ",
        (("list", 1.0), ("tilt", 1.0), ("rotation", 1.0)),
        {},
        1200,
    ),
}

ROBOTS = {"h1 walk": "unitree_h1", "h1 run": "unitree_h1", "a1 walk": "unitree_a1", "talos walk": "talos"}


@dataclass(frozen=True)
class Gait:
    """One cycle of a periodic motion whose second half mirrors the first."""

    body: Body
    cycle: np.ndarray  # [P, D] at MOCAP_RATE

    @property
    def period(self) -> float:
        """Seconds."""
        return len(self.cycle) / MOCAP_RATE

    def at(self, times: np.ndarray) -> np.ndarray:
        """Coordinates [.., D] at any times, s."""
        place = np.asarray(times) * MOCAP_RATE
        index = np.floor(place).astype(int)
        part = (place - index)[..., None]
        size = len(self.cycle)
        return (1 - part) * self.cycle[index % size] + part * self.cycle[(index + 1) % size]


def read_gait(recording: Recording, folder: Path, env: nil_jax.envs.RobotEnv) -> Gait:
    """The gait of a recording on a robot whose joints are those of the recording.

    Raises:
        ValueError: A joint of the file has no joint of the robot, and neither is it known to have none.
    """
    body, data = Body(env), np.load(folder / recording.file)

    def column(name: str) -> np.ndarray:
        return data[f"q_{name}"][recording.skip :]

    turns = [sign * column(f"{recording.base}_{name}") for name, sign in recording.turns]
    turn = Rotation.from_euler(recording.euler, np.stack(turns, axis=-1))
    heading = turn.as_euler("ZYX")[:, 0].mean()
    turn = Rotation.from_euler("z", -heading) * turn  # walks along +x
    joints = np.tile(env.default_qpos[7:].astype(np.float64), (len(turn), 1))
    found = [key[2:] for key in data if key.startswith("q_") and not key.startswith(f"q_{recording.base}")]
    for name in found:
        here = recording.joints.get(name, name)
        if here in env.joint_names:
            joints[:, env.joint_names.index(here)] = column(name)
    missing = set(env.joint_names) - {recording.joints.get(name, name) for name in found}
    if missing:
        raise ValueError(f"motion: expected every joint of {env.spec.name} in {recording.file}, got none for {missing}")
    height, lateral = (column(f"{recording.base}_{name}") for name in (recording.height, recording.lateral))
    # The clearance comes from the recorded height: the foot that is lowest over the cycle touches the floor.
    base = np.stack([0 * lateral, 0 * lateral, height], axis=-1)
    qpos = np.concatenate([base, np.roll(turn.as_quat(), 1, axis=-1), joints], axis=-1)
    clearance = body.kinematics(qpos)[2]
    drift = np.polyval(np.polyfit(np.arange(len(lateral)), lateral, 1), np.arange(len(lateral)))
    coords = np.concatenate(
        [(lateral - drift)[:, None], (clearance - clearance.min())[:, None], turn.as_rotvec(), joints], axis=-1
    )
    return Gait(body, closed_cycle(coords, body))


def recorded_velocity(recording: Recording, folder: Path) -> np.ndarray:
    """Forward and sideways velocity [S, 2] of the base, m/s."""
    data = np.load(folder / recording.file)
    return np.stack([data[f"dq_{recording.base}_{name}"][recording.skip :] for name in ("tx", recording.lateral)], -1)


def closed_cycle(coords: np.ndarray, body: Body) -> np.ndarray:
    """One cycle [P, D] of a motion [S, D]: its most symmetric half, and that half's mirror image.

    What is left between the end of the half and the mirrored start is spread over the half.
    """
    mirrored = body.mirrored(coords)
    lags = np.arange(round(HALF_CYCLE[0] * MOCAP_RATE), min(round(HALF_CYCLE[1] * MOCAP_RATE), len(coords) - 20))
    joints = slice(JOINTS, None)
    error = [np.square(coords[lag:, joints] - mirrored[:-lag, joints]).mean() for lag in lags]
    half = int(lags[np.argmin(error)])
    gap = mirrored[0] - coords[half]
    first = coords[:half] + np.linspace(0, 1, half, endpoint=False)[:, None] * gap
    return np.concatenate([first, body.mirrored(first)])
