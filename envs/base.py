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
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray


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

    def for_batch(self, num_envs: int) -> "Env":
        """This environment as one of `num_envs` in a batch: an engine may share memory between them."""
        del num_envs
        return self


class VmapWrapper(Env):
    """A batch of environments: `reset` takes keys [N], `step` takes actions [N, A]."""

    def __init__(self, env: Env):
        self.env = env
        self.observation_size, self.action_size = env.observation_size, env.action_size
        self.dt, self.episode_length = env.dt, env.episode_length
        self._step = jax.vmap(env.step)

    def reset(self, key: Key[Array, " N"]) -> State:
        """The first states; `key` is [N]."""
        return jax.vmap(self.env.for_batch(len(key)).reset)(key)

    def step(self, state: State, action: Float[Array, "N A"]) -> State:
        """The states one control step later."""
        return self._step(state, action)

    def drawn_starts(self, key: PRNGKeyArray, num_envs: int) -> Int[Array, " N"]:
        """With which of the `num_envs` first states each environment restarts: with any of them."""
        return jax.random.randint(key, (num_envs,), 0, num_envs)

    def on_reset(self, fresh: State, state: State) -> State:
        """What a restarted episode takes over from the state before it: nothing here."""
        del state
        return fresh


POOL, KEY = "auto_reset/pool", "auto_reset/key"  # names in `info` of the first states and of what draws from them


class AutoResetWrapper(Env):
    """Restarts finished episodes of a batched environment.

    Restarting draws from the N first states, so that no physics is spent on resets that do not happen. After a step,
    `obs` is what the policy acts on next, while `info["final_obs"]` is the true successor of the step, also where the
    episode ended; `reward`, `terminated` and `truncated` belong to the step. What it keeps in `info` for itself has
    names that begin with `auto_reset/`.
    """

    def __init__(self, env: VmapWrapper):
        self.env = env
        self.observation_size, self.action_size = env.observation_size, env.action_size
        self.dt, self.episode_length = env.dt, env.episode_length

    def reset(self, key: Key[Array, " N"]) -> State:
        """The first states; `key` is [N] and also seeds the later restarts."""
        key_reset, key_restart = jax.vmap(lambda key: tuple(jax.random.split(key)))(key)
        state = self.env.reset(key_reset)
        return state.replace(info=state.info | {POOL: state, KEY: key_restart[0], "final_obs": state.obs})

    def step(self, state: State, action: Float[Array, "N A"], **options: Any) -> State:
        """One control step, then a restart where the episode is over; `options` go to the wrapped environment."""
        pool, key = state.info[POOL], state.info[KEY]
        inner = {name: value for name, value in state.info.items() if name not in (POOL, KEY, "final_obs")}
        stepped = self.env.step(state.replace(info=inner), action, **options)

        key_next, key_draw = jax.random.split(key)
        draw = self.env.drawn_starts(key_draw, len(stepped.done))
        drawn = jax.tree.map(lambda leaf, own: leaf[draw] if own else leaf, pool, _per_env(pool))
        fresh = self.env.on_reset(drawn, stepped)

        def select(new: Array, old: Array, own: bool) -> Array:
            done = stepped.done.reshape(stepped.done.shape + (1,) * (old.ndim - 1))
            return jnp.where(done, new, old) if own else old

        news, olds = ((state.data, state.obs, state.info) for state in (fresh, stepped))
        data, obs, info = jax.tree.map(select, news, olds, _per_env(olds))
        extra = {POOL: pool, KEY: key_next, "final_obs": stepped.obs}
        return stepped.replace(data=data, obs=obs, info=info | extra)


def _per_env(batch: Any) -> Any:
    """For each leaf whether it has one entry per environment; other leaves belong to all of them together.

    Warp's list of contacts is such a leaf. Its shape alone would not tell, but `vmap` knows, and leaves it whole.
    """
    ranks = []

    def look(one: Any) -> Array:
        ranks.append(jax.tree.map(lambda leaf: leaf.ndim, one))
        return jnp.zeros(())

    jax.eval_shape(jax.vmap(look), batch)
    return jax.tree.map(lambda leaf, rank: leaf.ndim > rank, batch, ranks[0])
