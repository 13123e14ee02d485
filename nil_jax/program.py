"""The programs of a run: the training step, the first state and the evaluation, and how they are compiled.

Axes: D devices, N environments of each of them, K control steps of a reward tick.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from nil_jax import evaluation, parallel
from nil_jax.cache import gc_paused
from nil_jax.capacity import check_compiled, compiled_bytes
from nil_jax.config import Config
from nil_jax.envs import AutoResetWrapper, State
from nil_jax.learning import (
    ACTOR_METRICS,
    ActorCritic,
    LearnerState,
    Replay,
    ReplayState,
    make_actor_critic,
    make_policy,
    make_replay,
)
from nil_jax.learning.replay import check_replay
from nil_jax.rollout import ImitationEnv, collect
from nil_jax.types import Transition


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainingState:
    """All that training carries from one training step to the next.

    Every device has the learner and the key, and its own entry of the rest.
    """

    learner: LearnerState
    replay: ReplayState  # [D], each of its device's environments
    env_state: State  # [D, N]
    episode_return: Float[Array, "D N"]  # of the running episodes
    key: PRNGKeyArray


class Program(NamedTuple):
    """The pure functions of a run."""

    env: AutoResetWrapper  # around an ImitationEnv
    actor_critic: ActorCritic
    init: Callable[[PRNGKeyArray], TrainingState]
    training_step: Callable[[TrainingState, Any], tuple[TrainingState, dict[str, Array]]]
    shardings: TrainingState  # where the parts of a state lie


def make_program(env: ImitationEnv, config: Config, num_runs: int = 1) -> Program:
    """Joins environment, replay and learner into one training step.

    `training_step(state, None) -> (state, metrics)` runs one reward tick in all environments (K control steps) and then
    `K * grad_updates_per_step` gradient updates, as soon as the replay can be sampled. It has the form that
    `jax.lax.scan` takes. Each of `config.train.num_devices` devices steps its share of the environments and samples its
    share of a batch from them; gradients, statistics and metrics are averaged.

    Of more than one run `init` takes a key for each, and states and metrics have a leading axis of runs.

    Raises:
        ValueError: more devices than there are, or environments or a batch that they cannot share evenly.
    """
    mesh = parallel.make_mesh(config.train.num_devices or 1)
    share = share_of_a_device(config, mesh.size)
    auto_env = AutoResetWrapper(env)
    sizes = env.observation_size, env.action_size
    actor_critic = make_actor_critic(*sizes, share.learner, parallel.AXIS, _num_updates(config))
    replay = make_replay(share.learner, share.train.num_envs)
    whole, split = parallel.REPEATED, parallel.SPLIT
    init = partial(_init, auto_env, actor_critic, replay, share.train.num_envs)
    training_step = partial(_training_step, auto_env, actor_critic, replay, share)
    specs = TrainingState(learner=whole, replay=split, env_state=split, episode_return=split, key=whole)  # type: ignore
    if num_runs > 1:
        init, training_step = jax.vmap(init), jax.vmap(training_step, in_axes=(0, None))
        specs = parallel.behind_an_axis(specs)
    on_devices = partial(jax.shard_map, mesh=mesh, check_vma=False)
    return Program(
        auto_env,
        actor_critic,
        on_devices(init, in_specs=whole, out_specs=specs),
        on_devices(training_step, in_specs=(specs, whole), out_specs=(specs, whole)),
        parallel.shardings(mesh, specs),
    )


def _num_updates(config: Config) -> int:
    """Gradient updates of a whole run, give or take those of a compiled call."""
    learner, train = config.learner, config.train
    return (train.num_timesteps - learner.learning_starts) * learner.grad_updates_per_step // train.num_envs


def share_of_a_device(config: Config, num_devices: int) -> Config:
    """The settings with one device's part of everything that is split."""
    learner = config.learner
    check_replay(learner, config.train.num_envs)  # here, in the numbers that the user has given
    for name, value in (("num_envs", config.train.num_envs), ("batch_size", learner.batch_size)):
        if value % num_devices:
            even = -(-value // num_devices) * num_devices
            flag = f"--{name.replace('_', '-')} {even}"
            raise ValueError(f"{name}: expected a multiple of num_devices ({num_devices}), got {value}; type: {flag}")
    parts = {
        "replay_size": learner.replay_size // num_devices,
        "learning_starts": -(-learner.learning_starts // num_devices),
        "batch_size": learner.batch_size // num_devices,
        "num_envs": config.train.num_envs // num_devices,
    }
    return config.with_fields(**parts)


def _init(
    env: AutoResetWrapper, actor_critic: ActorCritic, replay: Replay, num_envs: int, key: PRNGKeyArray
) -> TrainingState:
    key_learner, key_env, key_loop = jax.random.split(key, 3)
    key_env = jax.random.fold_in(key_env, jax.lax.axis_index(parallel.AXIS))
    zero = jnp.zeros(())
    obs = jnp.zeros(env.observation_size)
    example = Transition(obs, jnp.zeros(env.action_size), zero, zero, obs, {"truncated": zero})
    return TrainingState(
        learner=actor_critic.init(key_learner),
        replay=parallel.entry(replay.init(example)),
        env_state=parallel.entry(env.reset(jax.random.split(key_env, num_envs))),
        episode_return=jnp.zeros((1, num_envs)),
        key=key_loop,
    )


def _training_step(
    env: AutoResetWrapper, actor_critic: ActorCritic, replay: Replay, config: Config, state: TrainingState, _: None
) -> tuple[TrainingState, dict[str, Array]]:
    key_next, key_collect, key_sample, key_update = jax.random.split(state.key, 4)
    key_collect, key_sample = (
        jax.random.fold_in(key, jax.lax.axis_index(parallel.AXIS)) for key in (key_collect, key_sample)
    )
    ticks = env.env.control_steps_per_tick
    policy = make_policy(actor_critic, state.learner)
    env_state, transitions, env_metrics = collect(env, policy, parallel.own(state.env_state), key_collect)
    learner = actor_critic.observe(state.learner, transitions.observation)
    memory = replay.add(parallel.own(state.replay), transitions)
    num_updates = ticks * config.learner.grad_updates_per_step

    keys = jax.random.split(key_sample, num_updates), jax.random.split(key_update, num_updates)

    def update(learner: LearnerState, keys: tuple[Array, Array]) -> tuple[LearnerState, dict[str, Array]]:
        batch = replay.sample(memory, keys[0], config.learner.batch_size)
        return actor_critic.update(learner, batch, keys[1])

    @jax.jit  # traced once, for both branches
    def learn(learner: LearnerState, keys: tuple[Array, Array]) -> tuple[LearnerState, dict[str, Array]]:
        learner, metrics = jax.lax.scan(update, learner, keys)
        # The actor's are NaN in updates that leave it alone; one NaN of the critics' has to stay.
        return learner, {
            name: jnp.nanmean(values) if name in ACTOR_METRICS else jnp.mean(values) for name, values in metrics.items()
        }

    def wait(learner: LearnerState, keys: tuple[Array, Array]) -> tuple[LearnerState, dict[str, Array]]:
        shapes = jax.eval_shape(learn, learner, keys)[1]
        return learner, jax.tree.map(lambda leaf: jnp.full(leaf.shape, jnp.nan, leaf.dtype), shapes)

    # All devices have as many steps in their replays, so either all of them learn or none.
    learner, learner_metrics = jax.lax.cond(replay.can_sample(memory), learn, wait, learner, keys)
    episode_return, episodes = _episodes(parallel.own(state.episode_return), env_metrics)
    env_means = {name: value.mean() for name, value in env_metrics.items() if name not in ("done", "fall")}
    metrics = {f"learner/{name}": value for name, value in learner_metrics.items()}
    metrics |= jax.lax.pmean(env_means, parallel.AXIS) | jax.lax.psum(episodes, parallel.AXIS)
    metrics["learning"] = replay.can_sample(memory)
    memory, env_state, episode_return = parallel.entry((memory, env_state, episode_return))
    return TrainingState(learner, memory, env_state, episode_return, key_next), metrics


def _episodes(running: Float[Array, " N"], metrics: dict[str, Array]) -> tuple[Float[Array, " N"], dict[str, Array]]:
    """Returns of the running episodes after K steps, and counts of those that ended meanwhile."""

    def step(running: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
        reward, done = row
        running = running + reward
        return jnp.where(done, 0.0, running), jnp.where(done, running, 0.0).sum()

    running, finished = jax.lax.scan(step, running, (metrics["reward"], metrics["done"]))
    counts = {"episodes": metrics["done"].sum(), "falls": metrics["fall"].sum(), "finished_return": finished.sum()}
    return running, counts


def compiled_programs(
    program: Program, config: Config, first: jax.stages.Traced, ticks: int
) -> tuple[
    Callable[[PRNGKeyArray], TrainingState],
    Callable[[TrainingState], tuple[TrainingState, dict[str, Array]]],
    Callable[[LearnerState, PRNGKeyArray], dict[str, evaluation.Episodes]],
]:
    """The first state, so many training steps, and the evaluation, which is compiled on while the training begins.

    `first` is the traced `program.init`. The training step needs most of what XLA can do on two cores, so the
    evaluation waits for it. What runs seldom is compiled in less time: on a CPU, XLA's former way takes a sixth to a
    third less, for code that is a fifth slower.
    """
    seldom = {"xla_cpu_use_fusion_emitters": False} if jax.default_backend() == "cpu" else None
    pool = ThreadPoolExecutor()
    call = pool.submit(_lowered_call(program, first.out_info, ticks).compile)
    init = first.lower().compile(seldom)
    check_compiled(compiled_bytes(call.result()))
    evaluate = pool.submit(lambda: _lowered_evaluation(program, config).compile(seldom))
    pool.shutdown(wait=False)
    return init, call.result(), _evaluation(program, evaluate)


@gc_paused()
def _lowered_call(program: Program, shapes: TrainingState, ticks: int) -> jax.stages.Lowered:
    def call(state: TrainingState) -> tuple[TrainingState, dict[str, Array]]:
        return jax.lax.scan(program.training_step, state, None, length=ticks)

    in_place = {"in_shardings": (program.shardings,), "out_shardings": (program.shardings, None), "donate_argnums": 0}
    return jax.jit(call, **in_place).lower(shapes)


@gc_paused()
def _lowered_evaluation(program: Program, config: Config) -> jax.stages.Lowered:
    def run_episodes(learner: LearnerState, key: PRNGKeyArray) -> dict:
        untrained = program.actor_critic.init(evaluation.untrained_key(key))
        policies = [make_policy(program.actor_critic, each, deterministic=True) for each in (learner, untrained)]
        policies += _controls(program).values()
        named = dict(zip(_names(program), policies, strict=True))
        return evaluation.run_episodes(program.env.env, named, config.train.num_eval_envs, key)

    key = jax.random.key(config.train.seed)
    return jax.jit(run_episodes).lower(jax.eval_shape(program.actor_critic.init, key), key)


def _controls(program: Program) -> dict[str, evaluation.Policy]:
    return evaluation.controls(program.env.env.action_size)


def _names(program: Program) -> list[str]:
    """Of the policies that an evaluation compares, in the order of its table."""
    return ["policy", "untrained policy", *_controls(program)]


def _evaluation(
    program: Program, compiled: Future[Callable]
) -> Callable[[LearnerState, PRNGKeyArray], dict[str, evaluation.Episodes]]:
    def evaluate(learner: LearnerState, key: PRNGKeyArray) -> dict[str, evaluation.Episodes]:
        # Every process does the same on its first device: none would have anything else to do meanwhile.
        episodes = jax.device_get(compiled.result()(parallel.first_copy(learner), key))
        return {name: episodes[name] for name in _names(program)}

    return evaluate


def part(tree: Any, index: int, count: int) -> Any:
    """Of what has an axis of runs, if there are several, that of one run."""
    return tree if count == 1 else jax.tree.map(lambda leaf: leaf[index], tree)


def joined(trees: Sequence[Any]) -> Any:
    """The opposite of `part`."""
    return trees[0] if len(trees) == 1 else jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
