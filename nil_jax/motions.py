"""Random motions of any robot, and motions near them: what an encoder is taught on.

Axes: M motions, T ticks, D coordinates of `envs.Body`, H harmonics.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from nil_jax.envs import Body
from nil_jax.envs.body import CLEARANCE, JOINTS, ROTATION, Y
from nil_jax.reference.align import sagittal_joints

FREQUENCY = (0.4, 3.0)  # Hz, of gaits and of wandering joints
SWING, SWAY, OFFSET = 0.45, 0.08, 0.25  # rad: joints across the picture, the others, and how far their middle is away
TILT, FALLEN, BOB = 0.08, 0.5, 0.02  # rad of the base; of one that falls; m that the feet leave the floor
GAITS, STILL, FALLS = 0.65, 0.15, 0.15  # parts of all motions; the rest are joints that wander
STRONGEST = {"shift": 0.35, "speed": 0.7, "amplitude": 0.8, "joint": 0.8, "all": 0.3, "blend": 1.0, "tilt": 0.3}


@dataclass(frozen=True)
class Motions:
    """Sums of sines: `x(t) = centre + sum_h amplitude_h sin(h phase(t) + offset_h)`, gaits made symmetric."""

    body: Body
    centre: Float[np.ndarray, "M D"]
    amplitude: Float[np.ndarray, "M H D"]
    offset: Float[np.ndarray, "M H D"]  # rad
    frequency: Float[np.ndarray, "M D"]  # Hz; the same for all coordinates of a gait
    shift: Float[np.ndarray, " M"]  # s
    gait: Float[np.ndarray, " M"]  # 1 where the second half of a cycle mirrors the first, else 0

    def at(self, times: Float[np.ndarray, " T"]) -> Float[np.ndarray, "M T D"]:
        """Coordinates at times in s."""
        phase = 2 * np.pi * (times[None, :, None] + self.shift[:, None, None]) * self.frequency[:, None]
        swing = self._sines(phase)
        mirrored = self.body.mirrored(self._sines(phase + np.pi))
        gait = self.gait[:, None, None]
        middle = self.centre[:, None] + gait * (self.body.mirrored(self.centre)[:, None] - self.centre[:, None]) / 2
        return middle + (1 - gait) * swing + gait * (swing + mirrored) / np.sqrt(2)

    def _sines(self, phase: Float[np.ndarray, "M T D"]) -> Float[np.ndarray, "M T D"]:
        harmonics = range(self.amplitude.shape[1])
        return sum(self.amplitude[:, None, h] * np.sin((h + 1) * phase + self.offset[:, None, h]) for h in harmonics)  # pyright: ignore


def random_motions(body: Body, count: int, rng: np.random.Generator) -> Motions:
    """Gaits, wandering joints, poses that are held, and falls.

    Args:
        body: The robot.
        count: M.
        rng: Draws them.
    """
    model = body.env.mj_model
    across = np.isin(np.arange(model.nq - 7), sagittal_joints(model, body.env.default_qpos))
    poses = body.coords(np.stack([body.env.default_qpos, body.env.start_qpos]))
    size = poses.shape[1]
    low, high = body.env.joint_range.T
    reach = np.minimum(np.where(across, SWING, SWAY), (high - low) / 3)
    spread = np.zeros(size)
    spread[JOINTS:] = np.minimum(np.where(across, OFFSET, SWAY), (high - low) / 4)
    spread[ROTATION], spread[Y] = TILT, BOB
    mix = rng.random((count, 1))
    centre = mix * poses[0] + (1 - mix) * poses[1] + spread * rng.standard_normal((count, size))
    centre[:, CLEARANCE] = np.maximum(rng.normal(scale=BOB, size=count), 0)
    fallen = rng.random(count) < FALLS
    centre[fallen, ROTATION] += rng.normal(scale=FALLEN, size=(fallen.sum(), 3))
    amplitude = np.zeros((count, 2, size))
    amplitude[..., JOINTS:] = reach * rng.standard_normal((count, 2, len(reach))) * [[1.0], [0.4]]
    amplitude[..., ROTATION] = TILT / 2 * rng.standard_normal((count, 2, 3))
    amplitude *= rng.uniform(0.2, 1.4, (count, 1, 1))
    style = rng.random(count)
    amplitude[style > 1 - STILL] = 0
    gait = (style < GAITS).astype(float)
    slow, fast = np.log(FREQUENCY)
    frequency = np.exp(rng.uniform(slow, fast, (count, size)))
    frequency = np.where(gait[:, None] > 0, frequency[:, :1], frequency)
    offset = rng.uniform(0, 2 * np.pi, (count, 2, size))
    return Motions(body, centre, amplitude, offset, frequency, np.zeros(count), gait)


def near(motions: Motions, rng: np.random.Generator) -> Motions:
    """Each motion changed in two ways on average, from hardly to much: what a policy does that nearly imitates it."""
    count, size = motions.centre.shape
    strength = {name: most * rng.random(count) ** 2 * rng.choice([-1, 1], count) for name, most in STRONGEST.items()}
    for name in strength:
        strength[name] = np.where(rng.random(count) < 2 / len(STRONGEST), strength[name], 0.0)
    still = motions.body.coords(motions.body.env.default_qpos[None])
    centre, blend = motions.centre.copy(), np.abs(strength["blend"])[:, None]
    one = JOINTS + rng.integers(0, size - JOINTS, count)
    # A gait would take half of it to the other side.
    centre[np.arange(count), one] += strength["joint"] * (1 + motions.gait)
    centre[:, JOINTS:] += strength["all"][:, None] * rng.standard_normal((count, size - JOINTS))
    centre[:, ROTATION] += strength["tilt"][:, None] * rng.standard_normal((count, 3))
    scale = np.maximum(1 + strength["amplitude"], 0)[:, None] * (1 - blend)
    return replace(
        motions,
        centre=(1 - blend) * centre + blend * still,
        amplitude=motions.amplitude * scale[..., None],
        frequency=motions.frequency * np.exp(strength["speed"])[:, None],
        shift=motions.shift + strength["shift"],
    )
