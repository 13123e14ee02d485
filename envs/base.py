"""The environment interface and its two wrappers.

An `Env` is a pair of pure functions: `reset(key) -> State` and `step(state, action) -> State`. The names follow Brax
and MuJoCo Playground; unlike theirs, termination and truncation are two flags, and automatic reset hides nothing: the
true last observation stays in `info["final_obs"]`.

Axes: N environments, O observation, A action.
"""

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, PRNGKeyArray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """All that an environment carries from step to step; the leading batch axes are the same on every field."""

    data: Any  # physics state (mjx.Data for robots)
    obs: Float[Array, "*n O"]
    reward: Float[Array, "*n"]
    terminated: Bool[Array, "*n"]  # the episode really ended: the value of what follows is zero
    truncated: Bool[Array, "*n"]  # the episode was cut by a time limit: what follows has a value
    metrics: dict[str, Array] = dataclasses.field(default_factory=dict)  # each [*n] float
    info: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def done(self) -> Bool[Array, "*n"]:
        """Whether the episode is over, for either reason."""
        return self.terminated | self.truncated

    def replace(self, **changes: Any) -> "State":
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


class Env(abc.ABC):
    """One robot in one world. `reset` and `step` are pure and may be jitted, vmapped and scanned."""

    observation_size: int
    action_size: int  # actions lie in [-1, 1]
    dt: float  # s between two calls of `step`
    episode_length: int  # control steps until truncation

    @abc.abstractmethod
    def reset(self, key: PRNGKeyArray) -> State:
        """The first state of an episode."""

    @abc.abstractmethod
    def step(self, state: State, action: Float[Array, " A"]) -> State:
        """The state one control step later."""


class VmapWrapper(Env):
    """A batch of environments: `reset` takes keys [N], `step` takes actions [N, A]."""

    def __init__(self, env: Env):
        self.env = env
        self.observation_size, self.action_size = env.observation_size, env.action_size
        self.dt, self.episode_length = env.dt, env.episode_length
        self._reset, self._step = jax.vmap(env.reset), jax.vmap(env.step)

    def reset(self, key: Key[Array, " N"]) -> State:
        """The first states; `key` is [N]."""
        return self._reset(key)

    def step(self, state: State, action: Float[Array, "N A"]) -> State:
        """The states one control step later."""
        return self._step(state, action)

    def on_reset(self, fresh: State, state: State) -> State:
        """What a restarted episode takes over from the state before it: nothing here."""
        del state
        return fresh


class AutoResetWrapper(Env):
    """Restarts finished episodes of a batched environment.

    Restarting draws from the N first states, so that no physics is spent on resets that do not happen. After a step,
    `obs` is what the policy acts on next, while `info["final_obs"]` is the true successor of the step, also where the
    episode ended; `reward`, `terminated` and `truncated` belong to the step.
    """

    def __init__(self, env: VmapWrapper):
        self.env = env
        self.observation_size, self.action_size = env.observation_size, env.action_size
        self.dt, self.episode_length = env.dt, env.episode_length

    def reset(self, key: Key[Array, " N"]) -> State:
        """The first states; `key` is [N] and also seeds the later restarts."""
        key_reset, key_restart = jax.vmap(lambda key: tuple(jax.random.split(key)))(key)
        state = self.env.reset(key_reset)
        return state.replace(info=state.info | {"pool": state, "key": key_restart[0], "final_obs": state.obs})

    def step(self, state: State, action: Float[Array, "N A"], **options: Any) -> State:
        """One control step, then a restart where the episode is over; `options` go to the wrapped environment."""
        pool, key, _ = (state.info[name] for name in ("pool", "key", "final_obs"))
        inner = {name: value for name, value in state.info.items() if name not in ("pool", "key", "final_obs")}
        stepped = self.env.step(state.replace(info=inner), action, **options)

        key_next, key_draw = jax.random.split(key)
        draw = jax.random.randint(key_draw, stepped.done.shape, 0, stepped.done.shape[0])
        fresh = self.env.on_reset(jax.tree.map(lambda leaf: leaf[draw], pool), stepped)

        def select(new: Array, old: Array) -> Array:
            return jnp.where(stepped.done.reshape(stepped.done.shape + (1,) * (old.ndim - 1)), new, old)

        data, obs, info = jax.tree.map(
            select, (fresh.data, fresh.obs, fresh.info), (stepped.data, stepped.obs, stepped.info)
        )
        extra = {"pool": pool, "key": key_next, "final_obs": stepped.obs}
        return stepped.replace(data=data, obs=obs, info=info | extra)
