"""Replay of transitions on the device, sampled as n-step windows.

Axes: N environments, K steps added at once, B batch, n steps of a window, O observation, A action.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import flashbax
import jax
import jax.numpy as jnp
from flashbax.buffers import trajectory_buffer
from jaxtyping import Array, Bool, PRNGKeyArray

from nil_jax.learning.actor_critic import LearnerConfig
from nil_jax.types import Transition

ReplayState = trajectory_buffer.TrajectoryBufferState


class Replay(NamedTuple):
    """Pure functions of a replay buffer; see `make_replay`.

    Attributes:
      init: `(example) -> state`, the example being one transition without batch axes.
      add: `(state, transitions [N, ...] or [N, K, ...]) -> state`; time runs along K and on from the last call.
      sample: `(state, key, batch_size) -> Transition [B, ...]`, reduced over n steps.
      can_sample: `(state) -> []` bool: `learning_starts` transitions are in.
    """

    init: Callable[[Transition], ReplayState]
    add: Callable[[ReplayState, Transition], ReplayState]
    sample: Callable[[ReplayState, PRNGKeyArray, int], Transition]
    can_sample: Callable[[ReplayState], Bool[Array, ""]]


def n_step_transition(window: Transition, gamma: float) -> Transition:
    """Reduce windows `[B, n, ...]` of consecutive steps to one transition each.

    With m the number of steps up to the first one that terminated or was truncated (n if none is):
    `reward = sum_{i<m} gamma^i r_i`, `next_observation` is the true successor of step m - 1, and
    `discount = (1 - terminated) gamma^(m - 1)`, so that `r + gamma discount V(s')` is the m-step return of Sutton and
    Barto (2018, eq. 7.1). Steps behind m belong to another episode and do not count.

    Args:
      window: consecutive steps of one environment, `extras["truncated"]` included.
      gamma: discount of one step.

    Returns:
      Transitions `[B, ...]` with the first step's observation and action.
    """
    going_on = (window.discount > 0.0) & (window.extras["truncated"] <= 0.0)
    ended_before = jnp.cumsum(jnp.logical_not(going_on[:, :-1]), axis=1) > 0
    inside = jnp.concatenate([jnp.ones_like(going_on[:, :1]), jnp.logical_not(ended_before)], axis=1)
    powers = gamma ** jnp.arange(inside.shape[1], dtype=window.reward.dtype)
    last = jnp.sum(inside, axis=1, dtype=jnp.int32) - 1
    rows = jnp.arange(inside.shape[0], dtype=jnp.int32)
    return Transition(
        observation=window.observation[:, 0],
        action=window.action[:, 0],
        reward=jnp.sum(jnp.where(inside, powers[None] * window.reward, 0.0), axis=1),
        discount=window.discount[rows, last] * powers[last],
        next_observation=window.next_observation[rows, last],
        extras={"truncated": window.extras["truncated"][rows, last]},
    )


def check_replay(config: LearnerConfig, num_envs: int) -> tuple[int, int]:
    """How many steps of each environment a buffer holds, and how many it has when learning starts.

    Raises:
      ValueError: if it cannot hold a window of each environment, or fills before learning starts.
    """
    steps_per_env = config.replay_size // num_envs
    steps_before_learning = max(-(-config.learning_starts // num_envs), config.n_step)
    if steps_per_env < steps_before_learning:
        raise ValueError(
            f"replay_size: expected at least {steps_before_learning * num_envs} (num_envs={num_envs} times "
            f"{steps_before_learning} steps, for learning_starts={config.learning_starts} and n_step={config.n_step}), "
            f"got {config.replay_size}; raise replay_size or lower learning_starts"
        )
    return steps_per_env, steps_before_learning


def make_replay(config: LearnerConfig, num_envs: int) -> Replay:
    """A buffer of `config.replay_size` transitions, `replay_size // num_envs` consecutive steps of each environment.

    The memory is allocated by `init`, whole. Windows never leak from one episode into the next, because they end at a
    terminated or truncated step, and never cross the newest step. Of `extras` only `"truncated"` is kept. Under `jit`,
    donate the state that goes into `add`: otherwise the whole buffer is copied.

    Args:
      config: `replay_size`, `learning_starts`, `n_step` and `gamma` are used.
      num_envs: N.

    Returns:
      The functions of the buffer.

    Raises:
      ValueError: if the buffer cannot hold a window of each environment, or fills before learning starts.
    """
    steps_per_env, steps_before_learning = check_replay(config, num_envs)
    buffer = flashbax.make_trajectory_buffer(
        add_batch_size=num_envs,
        sample_batch_size=config.batch_size,
        sample_sequence_length=config.n_step,
        period=1,
        min_length_time_axis=steps_before_learning,
        max_length_time_axis=steps_per_env,
    )

    def add(state: ReplayState, transitions: Transition) -> ReplayState:
        stored = _stored(transitions)
        if stored.reward.ndim == 1:
            stored = jax.tree.map(lambda x: x[:, None], stored)
        if stored.reward.shape[1] > steps_per_env:
            raise ValueError(
                f"replay_size: expected at least {stored.reward.size} ({stored.reward.shape[1]} steps at once of "
                f"num_envs={num_envs}), got {config.replay_size}; raise it and num_timesteps, or lower num_envs"
            )
        return buffer.add(state, stored)

    def sample(state: ReplayState, key: PRNGKeyArray, batch_size: int) -> Transition:
        window = trajectory_buffer.sample(state, key, batch_size, config.n_step, period=1).experience
        return n_step_transition(window, config.gamma)

    return Replay(
        init=lambda example: buffer.init(_stored(example)), add=add, sample=sample, can_sample=buffer.can_sample
    )


def _stored(transition: Transition) -> Transition:
    """What the buffer keeps of a transition: everything in float32, and the truncation mark alone of the extras."""
    if "truncated" not in transition.extras:
        raise ValueError(
            f'extras: expected the key "truncated", got {sorted(transition.extras)}; add extras={{"truncated": '
            "1.0 where the episode was cut by a time limit, else 0.0}"
        )
    kept = dataclasses.replace(transition, extras={"truncated": transition.extras["truncated"]})
    return jax.tree.map(lambda x: jnp.asarray(x).astype(jnp.float32), kept)
