"""Environments of other libraries as ours."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from nil_jax.envs.base import Env, State


class BraxEnv(Env):
    """An environment of Brax or MuJoCo Playground: `nil_jax.train(BraxEnv(env), num_timesteps=...)` learns its reward.

    Theirs know one flag, `done`, which stands for a termination; the time limit is added here. Of observations in parts
    (a dict, as Playground has them) the part "state" is seen. `State.data` is the whole state of theirs. Where an
    observation or a reward is not finite the episode ends, and both are 0.

    Args:
        env: not wrapped: `brax.envs.get_environment(name)` or `mujoco_playground.registry.load(name)`.
        episode_length: control steps until truncation.

    Raises:
        ValueError: An episode without a step.
    """

    def __init__(self, env: Any, episode_length: int = 1000):
        if episode_length < 1:
            raise ValueError(f"episode_length: expected an integer >= 1, got {episode_length}")
        self.env, self.episode_length = env, episode_length
        size = env.observation_size
        size = size["state"] if isinstance(size, dict) else size
        self.observation_size = size if isinstance(size, int) else int(size[0])
        self.action_size, self.dt = env.action_size, float(env.dt)

    def reset(self, key: PRNGKeyArray) -> State:
        """The first state of an episode."""
        # Both libraries keep keys in their states, as arrays of integers.
        return self._state(self.env.reset(jax.random.key_data(key)), jnp.int32(0))

    def step(self, state: State, action: Float[Array, " A"]) -> State:
        """The state one control step later."""
        return self._state(self.env.step(state.data, action), state.info["step"] + 1)

    def _state(self, inner: Any, step: Array) -> State:
        obs = inner.obs["state"] if isinstance(inner.obs, dict) else inner.obs
        finite = jnp.isfinite(obs).all() & jnp.isfinite(inner.reward)
        terminated = (inner.done > 0) | ~finite
        metrics = {name: jnp.where(finite, value, 0.0).astype(jnp.float32) for name, value in inner.metrics.items()}
        return State(
            data=inner,
            obs=jnp.where(finite, obs, 0.0).astype(jnp.float32),
            reward=jnp.where(finite, inner.reward, 0.0).astype(jnp.float32),
            terminated=terminated,
            truncated=step >= self.episode_length,
            metrics=metrics | {"fall": terminated.astype(jnp.float32)},
            info={"step": step},
        )
