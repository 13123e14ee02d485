"""Our environments as those of other libraries: Brax's trainers, and whatever takes a Gymnasium vector environment.

Axes: N environments, O observation, A action.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nil_jax.envs import AutoResetWrapper, Env, State, VmapWrapper
from nil_jax.rollout import ImitationEnv


def _batch(env: Env) -> AutoResetWrapper:
    return AutoResetWrapper(env if isinstance(env, VmapWrapper) else VmapWrapper(env))


def _step(env: AutoResetWrapper, state: State, action: Float[Array, "N A"]) -> State:
    """One control step; robots that imitate are looked at when their clock says so."""
    if not isinstance(env.env, ImitationEnv) or env.env.reference is None:
        return env.step(state, action)
    tick = (state.info["clock"][0] + 1) % env.env.control_steps_per_tick == 0
    return env.step(state, action, tick=tick)


def as_brax(env: Env) -> Any:
    """An environment for Brax's trainers, which must not wrap it: it is batched, and restarts by itself.

        ppo.train(as_brax(env), wrap_env_fn=lambda env, **_: env, episode_length=env.episode_length, ...)

    `done` is 1 where the episode is over, for either reason; `info["truncation"]` tells a time limit. Behind the end of
    an episode the observation is the first one of the next.

    Args:
        env: one robot, or an `ImitationEnv`.
    """
    from brax.envs.base import Env as BraxBase
    from brax.envs.base import State as BraxState

    batch = _batch(env)

    def view(state: State, steps: Array, returned: Array) -> BraxState:
        zero, done = jnp.zeros(state.reward.shape), state.done.astype(jnp.float32)
        metrics = {name: value.astype(jnp.float32) + zero for name, value in state.metrics.items()}
        info = {
            "steps": steps,
            "truncation": state.truncated.astype(jnp.float32),
            "episode_done": done,
            "episode_metrics": {"sum_reward": returned, "length": steps},
        }
        return BraxState(state, state.obs, state.reward, done, metrics, info)  # pyright: ignore[reportCallIssue]

    class View(BraxBase):
        """See `as_brax`."""

        @property
        def observation_size(self) -> int:
            return batch.observation_size

        @property
        def action_size(self) -> int:
            return batch.action_size

        @property
        def backend(self) -> str:
            return "mjx"

        def reset(self, rng: Array) -> BraxState:
            """The first states; `rng` holds N old-style keys, [N, 2]."""
            state = batch.reset(jax.random.wrap_key_data(rng))
            return view(state, jnp.zeros(state.reward.shape), jnp.zeros(state.reward.shape))

        def step(self, state: BraxState, action: Array) -> BraxState:
            """The states one control step later."""
            going_on = 1.0 - state.done
            following = _step(batch, state.pipeline_state, action)
            returned = going_on * state.info["episode_metrics"]["sum_reward"] + following.reward
            seen = view(following, going_on * state.info["steps"] + 1.0, returned)
            return seen.replace(info=state.info | seen.info)

    return View()


def as_gymnasium(env: Env, num_envs: int, seed: int = 0) -> Any:
    """A `gymnasium.vector.VectorEnv` of N robots, with NumPy arrays on its outside.

    Finished episodes restart within the step that ends them (`AutoresetMode.SAME_STEP`): `infos["final_obs"]` then
    holds the true last observations, `infos["_final_obs"]` says of which environments. Metrics are there too.

    Args:
        env: one robot, or an `ImitationEnv`.
        num_envs: N.
        seed: of the first `reset` that names none.

    Raises:
        ValueError: No environment is asked for, or Gymnasium is not installed.
    """
    if num_envs < 1:
        raise ValueError(f"num_envs: expected an integer >= 1, got {num_envs}")
    try:
        import gymnasium
        from gymnasium.vector import AutoresetMode
    except ImportError:
        raise ValueError("gymnasium: expected the package, got none; type: pip install gymnasium") from None

    batch = _batch(env)
    reset, step = jax.jit(batch.reset), jax.jit(lambda state, action: _step(batch, state, action))

    class View(gymnasium.vector.VectorEnv):
        """See `as_gymnasium`."""

        metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012 (as Gymnasium has it)

        def __init__(self):
            self.num_envs, self._key, self._state = num_envs, jax.random.key(seed), None
            self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (batch.observation_size,), np.float32)
            self.single_action_space = gymnasium.spaces.Box(-1.0, 1.0, (batch.action_size,), np.float32)
            self.observation_space = gymnasium.vector.utils.batch_space(self.single_observation_space, num_envs)
            self.action_space = gymnasium.vector.utils.batch_space(self.single_action_space, num_envs)

        def reset(self, *, seed: int | None = None, options: dict | None = None):
            """First observations [N, O] and an empty dict."""
            super().reset(seed=seed, options=options)
            self._key, key = jax.random.split(self._key if seed is None else jax.random.key(seed))
            self._state = reset(jax.random.split(key, num_envs))
            return np.asarray(self._state.obs), {}

        def step(self, actions: np.ndarray):
            """Observations, rewards, terminated, truncated, infos."""
            if self._state is None:
                raise ValueError("step: expected a reset before it, got none; type: env.reset()")
            expected = (num_envs, batch.action_size)
            if np.shape(actions) != expected:
                raise ValueError(f"actions: expected {expected}, got {np.shape(actions)}")
            self._state = state = step(self._state, jnp.asarray(actions, jnp.float32))
            values = jax.device_get((state.obs, state.reward, state.terminated, state.truncated, state.metrics))
            *outputs, metrics = values
            over = outputs[2] | outputs[3]
            last = {"final_obs": np.asarray(state.info["final_obs"]), "_final_obs": over} if over.any() else {}
            return *outputs, metrics | last

    return View()
