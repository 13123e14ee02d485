"""The two engines behind one interface: MJX in JAX, and MJX-Warp.

Warp keeps the contacts of all environments in one list and the constraint rows of each in an array, both of a size that
is fixed beforehand. What does not fit is lost, so the sizes come from watching the robot tumble in MuJoCo's C engine,
and every step reports whether something was lost all the same.

Axes: N environments, K poses.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from jaxtyping import Array, Float
from mujoco import mjx

from nil_jax.optional import require_warp
from nil_jax.parallel import own_device

TUMBLES, TUMBLE_SECONDS = 8, 1.0  # falls that are watched, and how long each
OVERFLOW = "buffer_overflow"  # metric: 1 from the step on in which an environment's contacts or rows did not fit


# Both are jitted by themselves, so that programs, and parts of one, share their traces. GPUs would multiply matrices in
# TF32, with 10 bits of a mantissa: too few for the solver's Hessian, and for millimetres.
@jax.jit
def step(model: mjx.Model, data: mjx.Data) -> mjx.Data:
    """One physics step, in float32 throughout."""
    with jax.default_matmul_precision("highest"):
        return mjx.step(model, data)


@jax.jit
def kinematics(model: mjx.Model, data: mjx.Data) -> mjx.Data:
    """Where all bodies and geoms are, in float32 throughout."""
    with jax.default_matmul_precision("highest"):
        return mjx.kinematics(model, data)


class Physics(NamedTuple):
    """An engine, for one robot."""

    mjx_model: mjx.Model
    make_data: Callable[[int], mjx.Data]  # for one of so many environments
    metrics: Callable[[mjx.Data], dict[str, Float[Array, "*n"]]]


def jax_physics(mj_model: mujoco.MjModel) -> Physics:
    """MJX in JAX: its constraint rows are those of all contacts that the model could have.

    Raises:
        ValueError: a model that MJX cannot simulate.
    """
    try:
        mjx_model = mjx.put_model(mj_model, device=own_device())
    except NotImplementedError as error:
        raise ValueError(f"model: expected what MJX can simulate, got {error}") from None
    return Physics(mjx_model, lambda num_envs: mjx.make_data(mjx_model, device=own_device()), lambda data: {})


def warp_physics(
    mj_model: mujoco.MjModel,
    pose: Float[np.ndarray, " nq"],
    controls: Float[np.ndarray, "nu 2"],
    margin: float,
) -> Physics:
    """MJX-Warp, with buffers for `margin` times the contacts and rows that `tumble` finds.

    Args:
        mj_model: the robot.
        pose: where the falls begin, before they are disturbed.
        controls: lower and upper bounds of what the actuators are given.
        margin: at least 1.

    Raises:
        ValueError: Warp is not installed, or a model that it cannot simulate.
    """
    require_warp("physics")
    try:
        mjx_model = mjx.put_model(mj_model, device=own_device(), impl="warp")
    except NotImplementedError as error:
        raise ValueError(f"model: expected what MJX-Warp can simulate, got {error}") from None
    # The kernels would print a line per lost contact, and one per step that ends the solver at its last iteration.
    mjx_model = mjx_model.tree_replace({"opt._impl.warn_overflow": 0})
    contacts, rows = tumble(mj_model, pose, controls)
    contacts = max(int(np.ceil(margin * contacts)), _colliding_pairs(mj_model))
    rows = int(np.ceil(margin * rows))

    def make_data(num_envs: int) -> mjx.Data:
        return mjx.make_data(mj_model, device=own_device(), impl="warp", naconmax=num_envs * contacts, njmax=rows)

    return Physics(mjx_model, make_data, lambda data: {OVERFLOW: _overflowed(data)})


def tumble(
    mj_model: mujoco.MjModel, pose: Float[np.ndarray, " nq"], controls: Float[np.ndarray, "nu 2"]
) -> tuple[int, int]:
    """The most contacts and the most constraint rows at any time while the robot falls in MuJoCo's C engine.

    Every other fall begins upright, the rest in any orientation; joints anywhere in their range, controls at random.
    """
    rng, data = np.random.default_rng(0), mujoco.MjData(mj_model)
    low, high = np.where(mj_model.jnt_limited[1:, None].astype(bool), mj_model.jnt_range[1:], [[-1.0, 1.0]]).T
    contacts = rows = 1
    for fall in range(TUMBLES):
        mujoco.mj_resetData(mj_model, data)
        data.qpos[:] = pose
        if fall:  # the first one begins in the pose itself
            data.qpos[7:] = rng.uniform(low, high)
        if fall % 2:
            data.qpos[3:7] = rng.normal(size=4)
        for _ in range(round(TUMBLE_SECONDS / mj_model.opt.timestep)):
            data.ctrl[:] = rng.uniform(*controls.T)
            mujoco.mj_step(mj_model, data)
            contacts, rows = max(contacts, data.ncon), max(rows, data.nefc)
    return contacts, rows


def _colliding_pairs(mj_model: mujoco.MjModel) -> int:
    """Pairs of geoms that may touch: the list of contacts must hold as many candidates."""
    kind, affinity = mj_model.geom_contype, mj_model.geom_conaffinity
    meets = (kind[:, None] & affinity) | (affinity[:, None] & kind)
    other = mj_model.geom_bodyid[:, None] != mj_model.geom_bodyid
    return int(np.count_nonzero((meets != 0) & other)) // 2


def _overflowed(data: mjx.Data) -> Float[Array, "*n"]:
    """1 if anything was lost since the episode began; iterations that ran out are settings, not losses."""
    kinds = mjx.warp.mjwp_types.OverflowType
    lost = int(kinds.ALL & ~(kinds.ITERATIONS | kinds.LS_ITERATIONS))
    return ((data._impl.overflow & lost) != 0).astype(jnp.float32)
