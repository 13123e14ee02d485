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

__all__ = ["as_brax", "as_gymnasium"]


def _batch(env: Env) -> AutoResetWrapper:
    return AutoResetWrapper(env if isinstance(env, VmapWrapper) else VmapWrapper(env))


def _step(env: AutoResetWrapper, state: State, action: Float[Array, "N A"]) -> State:
    """One control step; robots that imitate are looked at when their clock says so."""
    if not isinstance(env.env, ImitationEnv) or env.env.reference is None:
        return env.step(state, action)
    tick = (state.info["clock"][0] + 1) % env.env.control_steps_per_tick == 0
    return env.step(state, action, tick=tick)


def mend_brax() -> None:
    """Gives JAX back what Brax 0.14's trainers call and JAX 0.10 dropped, `jax.device_put_replicated`."""
    if not hasattr(jax, "device_put_replicated"):
        jax.device_put_replicated = lambda tree, devices: jax.tree.map(lambda x: jnp.stack([x] * len(devices)), tree)


def as_brax(env: Env) -> Any:
    """An environment for Brax's trainers, which must not wrap it: it is batched, and restarts by itself.

        ppo.train(as_brax(env), wrap_env_fn=lambda env, **_: env, episode_length=env.episode_length, ...)

    `done` is 1 where the episode is over, for either reason; `info["truncation"]` tells a time limit alone. Behind
    the end of an episode the observation is the first one of the next.

    Args:
        env: one robot, or an `ImitationEnv`.
    """
    from brax.envs.base import Env as BraxBase
    from brax.envs.base import State as BraxState

    mend_brax()
    batch = _batch(env)

    def view(state: State, steps: Array, returned: Array) -> BraxState:
        zero, done = jnp.zeros(state.reward.shape), state.done.astype(jnp.float32)
        metrics = {name: value.astype(jnp.float32) + zero for name, value in state.metrics.items()}
        info = {
            "steps": steps,
            "truncation": (state.truncated & ~state.terminated).astype(jnp.float32),
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


def as_gymnasium(env: Env, num_envs: int | None = None, seed: int | None = None) -> Any:
    """A `gymnasium.Env` of one robot, or a `gymnasium.vector.VectorEnv` of N, with NumPy arrays on its outside.

    Of N robots, finished episodes restart within the step that ends them (`AutoresetMode.SAME_STEP`), and `infos` has
    the form of Gymnasium's own vector environments: `final_obs` and `final_info` hold the true last observations and
    metrics, `_final_obs` says of which robots. Robot i begins as a single one does with the seed `seed + i`;
    of an `ImitationEnv` this is not so, as the first of its robots always begin at rest.

    Args:
        env: one robot, or an `ImitationEnv`.
        num_envs: N; None: one robot, which does not restart by itself.
        seed: of the first `reset` that names none; None: drawn.

    Raises:
        ValueError: No environment is asked for, or Gymnasium is not installed.
    """
    if num_envs is not None and num_envs < 1:
        raise ValueError(f"num_envs: expected an integer >= 1, got {num_envs}")
    try:
        import gymnasium
        from gymnasium.vector import AutoresetMode
    except ImportError:
        raise ValueError("gymnasium: expected the package, got none; type: pip install gymnasium") from None

    batch = _batch(env)
    reset = jax.jit(lambda seeds: batch.reset(jax.vmap(jax.random.key)(seeds)))
    step = jax.jit(lambda state, action: _step(batch, state, action))

    class Batch(gymnasium.vector.VectorEnv):
        """See `as_gymnasium`."""

        metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012 (as Gymnasium has it)

        def __init__(self, num_envs: int):
            self.num_envs, self._seed, self._state = num_envs, seed, None
            self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (batch.observation_size,), np.float32)
            self.single_action_space = gymnasium.spaces.Box(-1.0, 1.0, (batch.action_size,), np.float32)
            self.observation_space = gymnasium.vector.utils.batch_space(self.single_observation_space, num_envs)
            self.action_space = gymnasium.vector.utils.batch_space(self.single_action_space, num_envs)

        def reset(self, *, seed: int | None = None, options: dict | None = None):
            """First observations [N, O] and an empty dict."""
            seed, self._seed = self._seed if seed is None else seed, None
            super().reset(seed=seed, options=options)
            if seed is None:
                seeds = self.np_random.integers(2**32, size=self.num_envs)
            else:
                seeds = (seed + np.arange(self.num_envs)) % 2**32
            self._state = reset(seeds.astype(np.uint32))
            return np.array(self._state.obs), {}

        def step(self, actions: np.ndarray):
            """Observations, rewards, terminated, truncated, infos."""
            if self._state is None:
                raise ValueError("step: expected a reset before it, got none; type: env.reset()")
            expected = (self.num_envs, batch.action_size)
            if np.shape(actions) != expected:
                raise ValueError(f"actions: expected {expected}, got {np.shape(actions)}")
            self._state = state = step(self._state, jnp.asarray(actions, jnp.float32))
            last = state.info["final_obs"]
            values = state.obs, state.reward, state.terminated, state.truncated, state.metrics, last
            # Gymnasium has rewards in double precision; copies, because JAX's own memory must not be written to.
            obs, reward, terminated, truncated, metrics, last = jax.tree.map(np.array, jax.device_get(values))
            infos = _infos(metrics, last, terminated | truncated)
            return obs, reward.astype(np.float64), terminated, truncated, infos

    class Single(gymnasium.Env):
        """See `as_gymnasium`."""

        def __init__(self):
            self._batch = Batch(1)
            self.observation_space = self._batch.single_observation_space
            self.action_space = self._batch.single_action_space

        def reset(self, *, seed: int | None = None, options: dict | None = None):
            """First observation [O] and an empty dict."""
            super().reset(seed=seed, options=options)
            obs, infos = self._batch.reset(seed=seed, options=options)
            return obs[0], infos

        def step(self, action: np.ndarray):
            """Observation, reward, terminated, truncated, info; the observation is the last one where they say so."""
            obs, reward, terminated, truncated, infos = self._batch.step(np.asarray(action)[None])
            over = bool(terminated[0] | truncated[0])
            seen, found = (infos["final_obs"], infos["final_info"]) if over else (obs, infos)
            info = {name: value[0] for name, value in found.items() if not name.startswith("_")}
            return seen[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), info

    return Single() if num_envs is None else Batch(num_envs)


def _infos(metrics: dict[str, np.ndarray], last: np.ndarray, over: np.ndarray) -> dict[str, Any]:
    """Metrics and last observations as Gymnasium's vector environments tell them: `_name` says whose are in `name`.

    Args:
        metrics: each [N].
        last: [N, O], what each robot came to.
        over: [N] bool, whether its episode has ended there.
    """

    def of(whose: np.ndarray) -> dict[str, np.ndarray]:
        named = {name: np.where(whose, value, 0).astype(value.dtype) for name, value in metrics.items()}
        return named | {f"_{name}": whose.copy() for name in metrics}

    infos: dict[str, Any] = of(~over) if not over.all() else {}
    if over.any():
        seen = np.full(len(over), None, dtype=object)
        for i in np.flatnonzero(over):
            seen[i] = last[i]
        infos |= {"final_obs": seen, "_final_obs": over, "final_info": of(over), "_final_info": over.copy()}
    return infos
