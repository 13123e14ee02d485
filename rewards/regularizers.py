"""What a motion should not do, each an unweighted value in [-1, 0]: 0 is ideal, -1 the worst.

arXiv 2503.10626 names these penalties (torques, action change, joint velocities, sliding feet, torso tilt); their
formulas and inner weights are not published, so those here are ours, and every constant is a parameter. They are
bounded so that their weights, added as an offset, make every step that has not fallen worth at least zero.

Axes: any leading axes are batch; the last one (two for foot velocities) is named in each function.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from nil_jax.rewards.similarity import safe_norm


def torque(joint_torque: Float[Array, "*batch nu"], torque_limit: Float[Array, "*#batch nu"]) -> Float[Array, "*batch"]:
    """Joint effort (P_J).

        P_J = -mean_j min(|tau_j| / tau_max_j, 1)^2

    Args:
        joint_torque: actuator torques, N m (N for slides).
        torque_limit: the largest magnitude of each, > 0, same rank as `joint_torque` and same unit.
    """
    return -jnp.mean(jnp.square(jnp.clip(joint_torque / torque_limit, -1.0, 1.0)), axis=-1)


def action_rate(
    action: Float[Array, "*batch nu"], previous_action: Float[Array, "*batch nu"]
) -> Float[Array, "*batch"]:
    """Change of the action between two control steps (P_A).

        P_A = -mean_j min(((a_j - a'_j) / 2)^2, 1)

    Args:
        action: in [-1, 1], no unit.
        previous_action: the action of the control step before.
    """
    return -jnp.mean(jnp.square(jnp.clip((action - previous_action) / 2.0, -1.0, 1.0)), axis=-1)


def velocity(joint_velocity: Float[Array, "*batch nj"], scale: float = 10.0) -> Float[Array, "*batch"]:
    """Fast joints (P_V).

        P_V = -(1 - exp(-mean_j (qd_j / scale)^2))

    Args:
        joint_velocity: rad/s (m/s for slides), without the free base.
        scale: root-mean-square speed at which the value is -(1 - 1/e), rad/s.
    """
    return jnp.expm1(-jnp.mean(jnp.square(joint_velocity / scale), axis=-1))


def foot_slip(
    foot_velocity: Float[Array, "*batch feet axes"],
    foot_contact: Bool[Array, "*batch feet"] | Float[Array, "*batch feet"],
    scale: float = 0.5,
) -> Float[Array, "*batch"]:
    """Feet that slide while they touch the floor (P_F).

        P_F = -(1 - exp(-sum_f c_f ||v_f,xy|| / scale))

    A following camera on a white background does not show travel, so this term is what turns walking on the spot with
    sliding feet into walking.

    Args:
        foot_velocity: velocity of each foot in the world, m/s; the first two axes count, a third (z up) is left out.
        foot_contact: whether each foot touches the floor; a float in [0, 1] weighs a soft contact.
        scale: sliding speed, summed over the feet in contact, at which the value is -(1 - 1/e), m/s.
    """
    speed = safe_norm(foot_velocity[..., :2])
    return jnp.expm1(-jnp.sum(foot_contact.astype(speed.dtype) * speed, axis=-1) / scale)


def tilt(gravity: Float[Array, "*batch 3"], worst_angle: float = math.pi / 2) -> Float[Array, "*batch"]:
    """Torso away from upright (P_S); turning about the vertical is free.

        P_S = -min((1 - cos(angle)) / (1 - cos(worst_angle)), 1),    cos(angle) = -g_z

    Args:
        gravity: unit vector of gravity in the base's frame; (0, 0, -1) when upright.
        worst_angle: angle from the vertical at which the value reaches -1, rad, in (0, pi].
    """
    return -jnp.clip((1.0 + gravity[..., 2]) / (1.0 - math.cos(worst_angle)), 0.0, 1.0)
