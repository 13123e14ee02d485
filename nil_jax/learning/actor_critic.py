"""Soft actor-critic for many environments at once: LayerNorm critics, running normalisation, automatic temperature.

The algorithm is Haarnoja et al. 2018 (arXiv 1812.05905) with twin residual critics, scalar or distributional, and an
actor that learns less often than they do (delayed policy updates, Fujimoto et al. 2018, arXiv 1802.09477).
Axes: N environments, B batch, O observation, A action, Z values per critic.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from brax.training.acme import running_statistics
from brax.training.distribution import NormalTanhDistribution
from jaxtyping import Array, Float, Int, PRNGKeyArray

from nil_jax.learning import losses, networks
from nil_jax.types import Transition

# Below this a sensor counts as constant; without a floor its first tiny change would be an enormous input.
_MIN_OBSERVATION_STD = 1e-3
_MAX_NORMALIZED = 10.0
# Of the normal before tanh: small enough for a precise gait, large enough for a finite log density.
_MIN_ACTION_STD = 1e-3
# What settings may ask for, so that those of others, in a file, cannot take a machine's memory or hang it.
MOST_LAYERS, WIDEST = 8, 4096
MOST = {
    "batch_size": 2**20,
    "grad_updates_per_step": 10_000,
    "n_step": 1000,
    "num_quantiles": 1000,
    "policy_delay": 10_000,
    "replay_size": 2**31 - 1,
}
ACTOR_METRICS = ("actor_loss", "alpha_loss", "entropy", "actor_grad_norm")


@dataclass(frozen=True)
class LearnerConfig:
    """Settings of the learner. The defaults are those that made the Unitree H1 stand and walk on two CPU cores."""

    actor_hidden: tuple[int, ...] = (256, 256)
    critic_hidden: tuple[int, ...] = (256, 256)
    actor_lr: float = 3e-4
    critic_lr: float = 3e-4
    alpha_lr: float = 3e-4  # 0 keeps the temperature at init_temperature
    lr_decay: float = 0.3  # last share of a run's updates, over which all learning rates fall linearly to 0
    weight_decay: float = 0.0  # decoupled (AdamW), actor and critics
    max_grad_norm: float = 10.0  # of the actor's and of the critics' gradient
    gamma: float = 0.98
    tau: float = 0.01  # share of the critics that the target network takes over per update
    batch_size: int = 512
    grad_updates_per_step: int = 8  # per step of all environments
    n_step: int = 1
    critic: Literal["twin", "distributional"] = "twin"
    num_quantiles: int = 25  # per critic, distributional only
    actor_average: float = 3e-4  # share of the actor that its slow average takes over per update; 1: no average
    pessimism: float = 1.0  # 1: minimum of the twins, 0: their mean
    policy_delay: int = 2  # updates of the critics per update of the actor; at most grad_updates_per_step
    target_entropy_scale: float = 1.0  # target_entropy = -scale * A
    init_temperature: float = 0.02
    replay_size: int = 1_000_000  # transitions
    learning_starts: int = 5_000  # transitions in the replay before the first update
    normalize_observations: bool = True
    network_dtype: Literal["float32", "bfloat16"] = "float32"  # of matrix products; parameters stay float32

    def __post_init__(self):
        for name in ("actor_hidden", "critic_hidden"):
            widths = getattr(self, name)
            fits = 1 <= len(widths) <= MOST_LAYERS and 1 <= min(widths) <= max(widths) <= WIDEST
            _expect(name, fits, f"1 to {MOST_LAYERS} widths from 1 to {WIDEST}", widths)
        for name in ("actor_lr", "critic_lr", "max_grad_norm", "init_temperature"):
            value = getattr(self, name)
            _expect(name, 0.0 < value < math.inf, "a positive number", value)
        for name in ("alpha_lr", "weight_decay", "target_entropy_scale"):
            value = getattr(self, name)
            _expect(name, 0.0 <= value < math.inf, "a number >= 0", value)
        for name, most in MOST.items():
            value = getattr(self, name)
            _expect(name, 1 <= value <= most, f"an integer from 1 to {most}", value)
        _expect("learning_starts", self.learning_starts >= 0, "an integer >= 0", self.learning_starts)
        _expect("gamma", 0.0 <= self.gamma < 1.0, "a number in [0, 1)", self.gamma)
        for name in ("tau", "actor_average"):
            _expect(name, 0.0 < getattr(self, name) <= 1.0, "a number in (0, 1]", getattr(self, name))
        for name in ("pessimism", "lr_decay"):
            _expect(name, 0.0 <= getattr(self, name) <= 1.0, "a number in [0, 1]", getattr(self, name))
        _expect("critic", self.critic in ("twin", "distributional"), "'twin' or 'distributional'", self.critic)
        dtypes = ("float32", "bfloat16")
        _expect("network_dtype", self.network_dtype in dtypes, "'float32' or 'bfloat16'", self.network_dtype)

    @property
    def num_values(self) -> int:
        """Z: outputs of each critic."""
        return self.num_quantiles if self.critic == "distributional" else 1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LearnerState:
    """Everything that learning changes."""

    params: dict[str, Any]  # "actor"; "critic", whose leaves have a leading axis [2]
    target_params: Any  # slow copy of params["critic"]
    average_actor: Any  # slow average of params["actor"]: what acts where nothing is explored
    optimizer_state: dict[str, Any]  # "actor", "critic", "alpha"
    log_alpha: Float[Array, ""]  # log temperature
    normalizer: running_statistics.RunningStatisticsState  # of raw observations [O]
    steps: Int[Array, ""]  # gradient updates done, int32


class ActorCritic(NamedTuple):
    """Pure functions of an actor-critic; see `make_actor_critic`.

    Attributes:
      init: `(key) -> state`.
      act: `(state, observation [.., O], key, deterministic) -> (action [.., A] in [-1, 1], extras)`, extras holding
        `"log_prob"` [..] of that action and `"mean"` [.., A]; `deterministic` is a Python bool and ignores the key.
      observe: `(state, observations [.., O]) -> state`, takes raw observations into the running statistics.
      update: `(state, batch [B, ...], key) -> (state, metrics)`, one gradient step of the critics and, every
        `policy_delay` updates, of actor and temperature, whose metrics (`ACTOR_METRICS`) are else NaN.
    """

    init: Callable[[PRNGKeyArray], LearnerState]
    act: Callable[..., tuple[Float[Array, "*N A"], dict[str, Array]]]
    observe: Callable[[LearnerState, Float[Array, "*N O"]], LearnerState]
    update: Callable[[LearnerState, Transition, PRNGKeyArray], tuple[LearnerState, dict[str, Float[Array, ""]]]]


class _Parts(NamedTuple):
    """What the functions below share: nothing in it changes."""

    config: LearnerConfig
    actor: nn.Module
    critic: nn.Module
    distribution: NormalTanhDistribution
    optimizers: dict[str, optax.GradientTransformation]
    target_entropy: float  # nats
    axis: str | None  # of the devices that share a batch
    num_updates: int | None  # of the whole run


def make_actor_critic(
    observation_size: int,
    action_size: int,
    config: LearnerConfig,
    axis: str | None = None,
    num_updates: int | None = None,
) -> ActorCritic:
    """Build the functions of a soft actor-critic.

    Observations go in and out raw and are normalised where they are used, so a replayed one is always seen through the
    newest statistics. Nothing here is jitted: the caller compiles the whole training step and donates the state. Run
    several updates in `jax.lax.scan`: on a CPU that is twice as fast as writing them one behind the other.

    Args:
      observation_size: O.
      action_size: A.
      config: the settings.
      axis: name of a mapped axis over devices (`jax.shard_map`). Each then calls `observe` and `update` with its own
        part of the data, and all of them get what one device would have got from the whole.
      num_updates: gradient updates of the whole run, at whose end the learning rates fall (`config.lr_decay`); of a run
        without end (None) they stay.

    Returns:
      The functions.

    Raises:
      ValueError: if a size is not positive.
    """
    _expect("observation_size", observation_size >= 1, "an integer >= 1", observation_size)
    _expect("action_size", action_size >= 1, "an integer >= 1", action_size)
    dtype = jnp.dtype(config.network_dtype)
    parts = _Parts(
        config=config,
        actor=networks.Actor(action_size, config.actor_hidden, dtype),
        critic=networks.TwinCritic(config.critic_hidden, config.num_values, dtype),
        distribution=NormalTanhDistribution(action_size, min_std=_MIN_ACTION_STD),
        optimizers=_make_optimizers(config),
        target_entropy=-config.target_entropy_scale * action_size,
        axis=axis,
        num_updates=num_updates,
    )
    return ActorCritic(
        init=jax.jit(partial(_init, parts, observation_size, action_size)),
        act=partial(_act, parts),
        observe=partial(_observe, parts),
        update=partial(_update, parts),
    )


def make_policy(
    actor_critic: ActorCritic, state: LearnerState, deterministic: bool = False
) -> Callable[[Float[Array, "*N O"], PRNGKeyArray], tuple[Float[Array, "*N A"], dict[str, Array]]]:
    """The policy of a state, as a function of raw observations alone.

    It is a pytree with the state in its leaves: a jitted function that takes it as an argument is compiled once for all
    states.

    Args:
      actor_critic: the functions that made the state.
      state: its parameters and statistics are bound.
      deterministic: take the mean of the slow average of the actor instead of a sample of the newest one.

    Returns:
      `policy(observation [.., O], key) -> (action [.., A], extras)`.
    """
    return jax.tree_util.Partial(_acting(actor_critic.act, deterministic), state)


@lru_cache(maxsize=8)
def _acting(act: Callable, deterministic: bool) -> Callable:
    """The same object each time: to jit, policies with different functions are of different kinds."""
    return partial(act, deterministic=deterministic)


def _init(parts: _Parts, observation_size: int, action_size: int, key: PRNGKeyArray) -> LearnerState:
    key_actor, key_critic = jax.random.split(key)
    observation, action = jnp.zeros((1, observation_size)), jnp.zeros((1, action_size))
    params = {
        "actor": parts.actor.init(key_actor, observation),
        "critic": parts.critic.init(key_critic, observation, action),
    }
    log_alpha = jnp.array(math.log(parts.config.init_temperature), jnp.float32)
    normalizer = running_statistics.init_state(jnp.zeros(observation_size))
    return LearnerState(
        params=params,
        # A copy of its own: one buffer behind two leaves of a state cannot be donated.
        target_params=jax.tree.map(jnp.copy, params["critic"]),
        average_actor=jax.tree.map(jnp.copy, params["actor"]),
        optimizer_state={
            "actor": parts.optimizers["actor"].init(params["actor"]),
            "critic": parts.optimizers["critic"].init(params["critic"]),
            "alpha": parts.optimizers["alpha"].init(log_alpha),
        },
        log_alpha=log_alpha,
        normalizer=replace(normalizer, std_eps=jnp.zeros(())),  # an array, as in every later state and checkpoint
        steps=jnp.zeros((), jnp.int32),
    )


def _act(
    parts: _Parts,
    state: LearnerState,
    observation: Float[Array, "*N O"],
    key: PRNGKeyArray,
    deterministic: bool = False,
) -> tuple[Float[Array, "*N A"], dict[str, Array]]:
    distribution = parts.distribution
    params = state.average_actor if deterministic else state.params["actor"]
    logits = parts.actor.apply(params, _normalize(parts.config, state, observation))
    mean = _mean_before_tanh(distribution.create_dist(logits))
    before_tanh = mean if deterministic else distribution.sample_no_postprocessing(logits, key)
    extras = {"log_prob": distribution.log_prob(logits, before_tanh), "mean": distribution.postprocess(mean)}
    return distribution.postprocess(before_tanh), extras


def _mean_before_tanh(normal) -> Array:
    """Where `tanh` gives the mean of `tanh(x)`, x normal: `mu / sqrt(1 + pi sigma^2 / 2)`.

    MacKay's approximation of the mean of a logistic function (1992, "The evidence framework applied to classification
    networks", eq. 10), of which tanh is a stretched one. The mode, tanh(mu), overshoots what the critic has seen.
    """
    return normal.loc / jnp.sqrt(1.0 + 0.5 * jnp.pi * jnp.square(normal.scale))


def _average_rate(config: LearnerConfig, state: LearnerState) -> Float[Array, ""]:
    """A plain mean of the first actors, until that is slower than the rate asked for."""
    return jnp.maximum(config.actor_average, 1.0 / (state.steps + 1.0))


def _observe(parts: _Parts, state: LearnerState, observations: Float[Array, "*N O"]) -> LearnerState:
    if not parts.config.normalize_observations:
        return state
    normalizer = running_statistics.update(
        state.normalizer, observations, std_min_value=_MIN_OBSERVATION_STD, pmap_axis_name=parts.axis
    )
    return replace(state, normalizer=normalizer)


def _normalize(config: LearnerConfig, state: LearnerState, observation: Float[Array, "*N O"]) -> Float[Array, "*N O"]:
    if not config.normalize_observations:
        return observation
    return running_statistics.normalize(observation, state.normalizer, max_abs_value=_MAX_NORMALIZED)


def _update(
    parts: _Parts, state: LearnerState, batch: Transition, key: PRNGKeyArray
) -> tuple[LearnerState, dict[str, Float[Array, ""]]]:
    key_critic, key_actor = jax.random.split(key)
    observation = _normalize(parts.config, state, batch.observation)
    next_observation = _normalize(parts.config, state, batch.next_observation)

    (critic_loss, value), critic_grad = _critic_gradient(parts, state, observation, batch, next_observation, key_critic)
    critic_params, critic_opt = _descend(parts, state, "critic", state.params["critic"], critic_grad)
    improve = partial(_improve_actor, parts, state, critic_params, observation, key_actor)
    delay = min(parts.config.policy_delay, parts.config.grad_updates_per_step)  # each step of the robots improves it
    due = delay == 1 or state.steps % delay == 0
    (actor_params, log_alpha, acting), actor_metrics = jax.lax.cond(due, improve, partial(_keep_actor, state))

    metrics = actor_metrics | {
        "critic_loss": critic_loss,
        "alpha": jnp.exp(state.log_alpha),
        "value": value,
        "critic_grad_norm": optax.tree.norm(critic_grad),
    }
    state = LearnerState(
        params={"actor": actor_params, "critic": critic_params},
        target_params=optax.incremental_update(critic_params, state.target_params, parts.config.tau),
        average_actor=optax.incremental_update(actor_params, state.average_actor, _average_rate(parts.config, state)),
        optimizer_state=acting | {"critic": critic_opt},
        log_alpha=log_alpha,
        normalizer=state.normalizer,
        steps=state.steps + 1,
    )
    return state, metrics


def _improve_actor(parts, state, critic_params, observation, key):
    """((actor, log temperature, their optimizer states), metrics) after a step against the newest critics."""
    (loss, log_prob), gradient = _actor_gradient(parts, state, critic_params, observation, key)
    actor_params, actor_opt = _descend(parts, state, "actor", state.params["actor"], gradient)
    alpha_loss, alpha_gradient = _mean(
        parts, jax.value_and_grad(losses.alpha_loss)(state.log_alpha, log_prob, parts.target_entropy)
    )
    log_alpha, alpha_opt = _descend(parts, state, "alpha", state.log_alpha, alpha_gradient)
    entropy = -_mean(parts, jnp.mean(log_prob))
    found = dict(zip(ACTOR_METRICS, (loss, alpha_loss, entropy, optax.tree.norm(gradient)), strict=True))
    return (actor_params, log_alpha, {"actor": actor_opt, "alpha": alpha_opt}), found


def _keep_actor(state):
    """What `_improve_actor` returns, unchanged, of an update that leaves the actor alone."""
    acting = {name: state.optimizer_state[name] for name in ("actor", "alpha")}
    return (state.params["actor"], state.log_alpha, acting), dict.fromkeys(ACTOR_METRICS, jnp.full((), jnp.nan))


def _critic_gradient(parts, state, observation, batch, next_observation, key):
    """((loss, mean value), gradient) of both critics against the target critics under the present actor."""
    config = parts.config
    next_action, next_log_prob = _sample_action(parts, state.params["actor"], next_observation, key)
    next_values = parts.critic.apply(state.target_params, next_observation, next_action)
    target = losses.td_target(
        batch.reward,
        batch.discount,
        losses.pessimistic_values(next_values, config.pessimism),
        next_log_prob,
        jnp.exp(state.log_alpha),
        config.gamma,
    )
    loss_of_kind = losses.quantile_critic_loss if config.critic == "distributional" else losses.twin_critic_loss

    def loss(params):
        values = parts.critic.apply(params, observation, batch.action)
        return loss_of_kind(values, target), jnp.mean(values)

    return _mean(parts, jax.value_and_grad(loss, has_aux=True)(state.params["critic"]))


def _actor_gradient(parts, state, critic_params, observation, key):
    """((loss, log_prob [B]), gradient) of the actor against the newest critics."""

    def loss(params):
        action, log_prob = _sample_action(parts, params, observation, key)
        values = parts.critic.apply(critic_params, observation, action)
        value = jnp.mean(losses.pessimistic_values(values, parts.config.pessimism), axis=-1)
        return losses.actor_loss(log_prob, value, jnp.exp(state.log_alpha)), log_prob

    (loss_value, log_prob), grad = jax.value_and_grad(loss, has_aux=True)(state.params["actor"])
    loss_value, grad = _mean(parts, (loss_value, grad))
    return (loss_value, log_prob), grad


def _sample_action(parts, actor_params, observation, key):
    """(action [B, A], log density [B]), differentiable in the actor's parameters; the observation is normalised."""
    logits = parts.actor.apply(actor_params, observation)
    normal = parts.distribution.create_dist(logits)
    before_tanh = _noise(parts, key, normal.loc.shape) * normal.scale + normal.loc
    return parts.distribution.postprocess(before_tanh), parts.distribution.log_prob(logits, before_tanh)


def _noise(parts: _Parts, key: PRNGKeyArray, shape: tuple[int, int]) -> Float[Array, "B A"]:
    """Normal; of several devices each draws that of the whole batch, and takes its part: so all agree with one."""
    if parts.axis is None:
        return jax.random.normal(key, shape)
    whole = jax.random.normal(key, (jax.lax.axis_size(parts.axis) * shape[0], shape[1]))
    return jax.lax.dynamic_slice_in_dim(whole, jax.lax.axis_index(parts.axis) * shape[0], shape[0])


def _mean(parts: _Parts, tree: Any) -> Any:
    """Over the devices."""
    return tree if parts.axis is None else jax.lax.pmean(tree, parts.axis)


def _descend(parts: _Parts, state: LearnerState, name: str, params: Any, grad: Any) -> tuple[Any, Any]:
    """(params, optimizer state) after one step of the optimiser called `name`."""
    updates, optimizer_state = parts.optimizers[name].update(grad, state.optimizer_state[name], params)
    return optax.apply_updates(params, optax.tree.scale(_decay(parts, state), updates)), optimizer_state


def _decay(parts: _Parts, state: LearnerState) -> Float[Array, ""]:
    """Share of the learning rates that is left: 1, and then linearly down to 0 at the end of the run."""
    falling = parts.config.lr_decay * (parts.num_updates or 0)  # updates
    if not falling:
        return jnp.ones(())
    return jnp.clip((parts.num_updates - state.steps) / falling, 0.0, 1.0)


def _make_optimizers(config: LearnerConfig) -> dict[str, optax.GradientTransformation]:
    def clipped_adamw(learning_rate: float) -> optax.GradientTransformation:
        clip = optax.clip_by_global_norm(config.max_grad_norm)
        return optax.chain(clip, optax.adamw(learning_rate, weight_decay=config.weight_decay))

    return {
        "actor": clipped_adamw(config.actor_lr),
        "critic": clipped_adamw(config.critic_lr),
        "alpha": optax.adam(config.alpha_lr),
    }


def _expect(name: str, ok: bool, expected: str, got: Any) -> None:
    if not ok:
        raise ValueError(f"{name}: expected {expected}, got {got!r}")
