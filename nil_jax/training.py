"""`train`: a host loop around one compiled training step.

Axes: N environments, K control steps of a reward tick.
"""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from nil_jax import evaluation
from nil_jax.capacity import check_memory, with_fastest_renderer
from nil_jax.config import Config
from nil_jax.distill import fidelity
from nil_jax.envs import AutoResetWrapper, Env, RobotEnv, State
from nil_jax.learning import (
    ActorCritic,
    LearnerState,
    Replay,
    ReplayState,
    make_actor_critic,
    make_policy,
    make_replay,
)
from nil_jax.reference import (
    Reference,
    Video,
    in_words,
    is_reference,
    prepare_reference,
    read_video,
    tempo_hint,
    with_embeddings,
)
from nil_jax.report import PANEL, write_comparison, write_report
from nil_jax.rewards import Encoder
from nil_jax.rollout import ImitationEnv, collect
from nil_jax.run import Run, Stop
from nil_jax.types import Transition

CALLS = 200  # the compiled loop returns to the host about this often in a run, to show progress and to log


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainingState:
    """All that training carries from one training step to the next."""

    learner: LearnerState
    replay: ReplayState
    env_state: State  # [N]
    episode_return: Float[Array, " N"]  # of the running episodes
    key: PRNGKeyArray


@dataclass(frozen=True)
class TrainingResult:
    """What `train` returns."""

    policy: Callable[[Array, PRNGKeyArray], tuple[Array, dict]]  # deterministic; (observation, key) -> (action, extras)
    evaluation: dict[str, dict[str, float]]  # of the last policy beside its controls, as `nil_jax.evaluate` reports it
    learner: LearnerState
    reference: Reference | None
    folder: Path | None  # of the run


class Program(NamedTuple):
    """The pure functions of a run."""

    env: AutoResetWrapper  # around an ImitationEnv
    actor_critic: ActorCritic
    init: Callable[[PRNGKeyArray], TrainingState]
    training_step: Callable[[TrainingState, Any], tuple[TrainingState, dict[str, Array]]]


def make_program(env: ImitationEnv, config: Config) -> Program:
    """Joins environment, replay and learner into one training step.

    `training_step(state, None) -> (state, metrics)` runs one reward tick in all environments (K control steps) and then
    `K * grad_updates_per_step` gradient updates, as soon as the replay can be sampled. It has the form that
    `jax.lax.scan` takes.
    """
    num_envs = config.train.num_envs
    auto_env = AutoResetWrapper(env)
    actor_critic = make_actor_critic(env.observation_size, env.action_size, config.learner)
    replay = make_replay(config.learner, num_envs)
    return Program(
        auto_env,
        actor_critic,
        partial(_init, auto_env, actor_critic, replay, num_envs),
        partial(_training_step, auto_env, actor_critic, replay, config),
    )


def _init(
    env: AutoResetWrapper, actor_critic: ActorCritic, replay: Replay, num_envs: int, key: PRNGKeyArray
) -> TrainingState:
    key_learner, key_env, key_loop = jax.random.split(key, 3)
    zero = jnp.zeros(())
    obs = jnp.zeros(env.observation_size)
    example = Transition(obs, jnp.zeros(env.action_size), zero, zero, obs, {"truncated": zero})
    return TrainingState(
        learner=actor_critic.init(key_learner),
        replay=replay.init(example),
        env_state=env.reset(jax.random.split(key_env, num_envs)),
        episode_return=jnp.zeros(num_envs),
        key=key_loop,
    )


def _training_step(
    env: AutoResetWrapper, actor_critic: ActorCritic, replay: Replay, config: Config, state: TrainingState, _: None
) -> tuple[TrainingState, dict[str, Array]]:
    key_next, key_collect, key_update = jax.random.split(state.key, 3)
    ticks = env.env.control_steps_per_tick
    policy = make_policy(actor_critic, state.learner)
    env_state, transitions, env_metrics = collect(env, policy, state.env_state, key_collect)
    learner = actor_critic.observe(state.learner, transitions.observation)
    memory = replay.add(state.replay, transitions)
    num_updates = ticks * config.learner.grad_updates_per_step

    def update(learner: LearnerState, key: PRNGKeyArray) -> tuple[LearnerState, dict[str, Array]]:
        key_sample, key_learn = jax.random.split(key)
        return actor_critic.update(learner, replay.sample(memory, key_sample, config.learner.batch_size), key_learn)

    def learn(learner: LearnerState, key: PRNGKeyArray) -> tuple[LearnerState, dict[str, Array]]:
        learner, metrics = jax.lax.scan(update, learner, jax.random.split(key, num_updates))
        return learner, jax.tree.map(jnp.mean, metrics)

    def wait(learner: LearnerState, key: PRNGKeyArray) -> tuple[LearnerState, dict[str, Array]]:
        del key
        shapes = jax.eval_shape(learn, learner, key_update)[1]
        return learner, jax.tree.map(lambda leaf: jnp.full(leaf.shape, jnp.nan, leaf.dtype), shapes)

    learner, learner_metrics = jax.lax.cond(replay.can_sample(memory), learn, wait, learner, key_update)
    episode_return, episodes = _episodes(state.episode_return, env_metrics)
    metrics = {f"learner/{name}": value for name, value in learner_metrics.items()}
    metrics |= {name: value.mean() for name, value in env_metrics.items() if name not in ("done", "fall")}
    metrics["learning"] = replay.can_sample(memory)
    return TrainingState(learner, memory, env_state, episode_return, key_next), metrics | episodes


def _episodes(running: Float[Array, " N"], metrics: dict[str, Array]) -> tuple[Float[Array, " N"], dict[str, Array]]:
    """Returns of the running episodes after K steps, and counts of those that ended meanwhile."""

    def step(running: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
        reward, done = row
        running = running + reward
        return jnp.where(done, 0.0, running), jnp.where(done, running, 0.0).sum()

    running, finished = jax.lax.scan(step, running, (metrics["reward"], metrics["done"]))
    counts = {"episodes": metrics["done"].sum(), "falls": metrics["fall"].sum(), "finished_return": finished.sum()}
    return running, counts


def train(
    env: Env | str,
    ref_video: str | Path | np.ndarray | Video | Reference | None = None,
    *,
    config: Config | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    source_fps: float | None = None,
    encoder: Encoder | None = None,
    progress: bool = True,
    **overrides: Any,
) -> TrainingResult:
    """Trains a policy to move like the robot in a video.

    Args:
        env: from `nil_jax.envs.make`, or a name that it takes. A given env keeps its own settings.
        ref_video: a video file, a folder of frames, frames [T, H, W, 3] uint8 with `source_fps`, or a prepared
            `Reference` (or the folder of one); without one the env's own reward is optimised.
        config: all settings; by default the preset "cpu".
        output: folder of the run (settings, metrics, checkpoints, curves, comparison video); without it nothing is
            written.
        resume: go on from the newest checkpoint in `output`, exactly where it was.
        source_fps: frames per second of an array or folder.
        encoder: embeds clips for the video term, instead of the one that the config names.
        progress: show a progress bar.
        **overrides: single fields of `config`, as in `train(env, video, num_timesteps=300_000)`; `reward="paper"` for
            the published terms.

    Returns:
        The trained policy, its evaluation and the final learner state.

    Raises:
        ValueError: a setting, a clip or a folder that does not fit, with what to do.
        FloatingPointError: the learner diverged; the last good checkpoint is kept and named.
        OSError: the run's folder cannot be written; the same.
    """
    config = (config or Config()).with_fields(**overrides)
    if isinstance(env, str):
        from nil_jax.envs import make

        env = make(env, config.env)
    # A replay never holds more than the run makes.
    replay_size = min(config.learner.replay_size, config.train.num_timesteps)
    config = replace(config, env=getattr(env, "config", config.env)).with_fields(replay_size=replay_size)
    run = Run.open(output, config, env, resume=resume, progress=progress)
    encoder = encoder or _encoder(config, run)
    reference = _reference(env, ref_video, config, source_fps, run)
    if reference is not None and encoder is not None:
        _warn_of_stranger(encoder, env, run)
        reference = with_embeddings(reference, encoder)
    imitation = _checked(ImitationEnv(env, reference, config.reward, encoder, config.imitation), config, run)
    program = make_program(imitation, config)
    run.start(reference, imitation.renderer_kind)
    try:
        return _train(program, config, run)
    except KeyboardInterrupt:
        run.say(run.interrupted())
        raise
    except OSError as error:
        if run.folder is None or isinstance(error, BrokenPipeError):  # nothing is written, or the reader has gone
            raise
        raise OSError(run.unwritable(error)) from error
    finally:
        run.close()


def _encoder(config: Config, run: Run) -> Encoder | None:
    if config.train.encoder is None or not config.reward.uses_video:
        run.say("video term off: no encoder is set, or its weight is 0 (--encoder student, i3d, or a TimeSformer)")
        return None
    return config.train.load_encoder()


def _warn_of_stranger(encoder: Encoder, env: Env, run: Run) -> None:
    """Measures a student on a robot that it was not taught on."""
    stranger = encoder.taught_on is not None and isinstance(env, RobotEnv) and env.fingerprint not in encoder.taught_on
    if run.resume or not stranger:
        return
    with run.stage("encoder on a robot that it was not taught on"):
        found = fidelity(encoder, env)
    run.say(
        f"warning: the encoder was not taught on {env.spec.name}; on random motions of it its distances and the true "
        f"ones have a rank correlation of {found:.2f} (the shipped one has 0.80 on Unitree H1); to teach one of your "
        f"own, type: nil-jax distill {env.spec.handle} -o my_student"
    )


def _reference(env: Env, ref_video: Any, config: Config, source_fps: float | None, run: Run) -> Reference | None:
    given = Reference.load(ref_video) if is_reference(ref_video) else ref_video
    if run.resume:
        if given is not None:
            _check_same_clip(run.reference, given, source_fps)
        return run.reference
    if given is not None and not isinstance(given, Reference):
        with run.stage("reference") as progress:
            settings = dataclasses.asdict(config.reference)
            given = prepare_reference(env, given, source_fps=source_fps, progress=progress, **settings)
    made = given.provenance if given is not None else {}
    if "first_frame_iou" in made:
        run.say(f"first-frame IoU {made['first_frame_iou']:.2f}")
    if "verdict" in made and made["verdict"]["verdict"] != "good":
        run.say(f"warning: the clip is {in_words(made['verdict'])} (see the preview of nil-jax prepare)")
    hint = tempo_hint(made["tempo"], made["speed"]) if "tempo" in made else None
    if hint:
        run.say(f"hint: the clip shows {hint}")
    return given


def _checked(env: ImitationEnv, config: Config, run: Run) -> ImitationEnv:
    """Refuses what does not fit into memory; picks the renderer."""
    policies = 2 + len(evaluation.controls(env.action_size))  # trained and untrained ones beside their controls
    check_memory(env, config.train.num_envs)
    check_memory(env, policies * config.train.num_eval_envs, "num_eval_envs", policies)
    return with_fastest_renderer(env, config.train.num_envs, run.say, run.renderer)


def _check_same_clip(reference: Reference | None, given: Any, source_fps: float | None) -> None:
    """A resumed run goes on with its own reference; another clip on the command line would be a misunderstanding."""
    if isinstance(given, Reference):
        digest = given.provenance.get("source_sha256")
    else:
        digest = read_video(given, fps=source_fps).sha256
    if reference is None or digest != reference.provenance.get("source_sha256"):
        raise ValueError("resume: expected the clip that the run began with, got another; start a new run with -o")


def _train(program: Program, config: Config, run: Run) -> TrainingResult:
    env, seed = program.env.env, config.train.seed
    steps_per_tick = config.train.num_envs * env.control_steps_per_tick
    ticks_per_call = max(1, config.train.num_timesteps // steps_per_tick // CALLS)
    steps_per_call = ticks_per_call * steps_per_tick
    total = -(-config.train.num_timesteps // steps_per_call) * steps_per_call
    with run.stage("compile"):
        call, evaluate = _compiled(program, config, ticks_per_call)
    untrained = program.actor_critic.init(jax.random.key(seed))
    state, done = run.restore(jax.jit(program.init)(jax.random.key(seed)))
    run.begin(done, total)
    episodes = None
    with Stop(run.say) as stop:
        while done < total:
            started = time.perf_counter()
            state, metrics = call(state)
            metrics = _summary(jax.device_get(metrics))
            evals_before, evals = (n * config.train.num_evals // total for n in (done, done + steps_per_call))
            done += steps_per_call
            run.log(done, metrics, steps_per_call / (time.perf_counter() - started))
            if not np.isfinite(metrics.get("learner/critic_loss", 0.0)):
                raise FloatingPointError(run.divergence())
            if evals > evals_before:
                episodes = evaluate(state.learner, untrained)
                run.checkpoint(done, state, evaluation.summary(episodes)["policy"])
            if stop.asked:
                run.save(done, state)
                raise KeyboardInterrupt
    if episodes is None:  # the run had ended before
        episodes = evaluate(state.learner, untrained)
    rows = evaluation.summary(episodes)
    run.finish(rows)
    if run.folder is not None and env.reference is not None:
        pictures = evaluation.episode_pictures(env, episodes["policy"], PANEL)
        write_comparison(run.folder / "comparison.mp4", env.reference, pictures)
    if run.folder is not None:
        write_report(run.folder)
    policy = make_policy(program.actor_critic, state.learner, deterministic=True)
    return TrainingResult(policy, rows, state.learner, env.reference, run.folder)


def _compiled(
    program: Program, config: Config, ticks_per_call: int
) -> tuple[Callable[[TrainingState], tuple], Callable[[LearnerState, LearnerState], dict[str, evaluation.Episodes]]]:
    """The loop over training steps, and the evaluation of two learner states beside the controls."""
    env = program.env.env

    def call(state: TrainingState) -> tuple[TrainingState, dict[str, Array]]:
        return jax.lax.scan(program.training_step, state, None, length=ticks_per_call)

    def policies(learner: LearnerState, untrained: LearnerState) -> dict[str, evaluation.Policy]:
        return {
            "policy": make_policy(program.actor_critic, learner, deterministic=True),
            "untrained policy": make_policy(program.actor_critic, untrained, deterministic=True),
            **evaluation.controls(env.action_size),
        }

    def run_episodes(learner: LearnerState, untrained: LearnerState, key: PRNGKeyArray) -> dict:
        return evaluation.run_episodes(env, policies(learner, untrained), config.train.num_eval_envs, key)

    key = jax.eval_shape(lambda: jax.random.key(0))
    shapes = jax.eval_shape(program.init, key)
    compiled_call = jax.jit(call, donate_argnums=0).lower(shapes).compile()
    compiled_episodes = jax.jit(run_episodes).lower(shapes.learner, shapes.learner, key).compile()

    def evaluate(learner: LearnerState, untrained: LearnerState) -> dict[str, evaluation.Episodes]:
        episodes = jax.device_get(compiled_episodes(learner, untrained, jax.random.key(config.train.seed)))
        return {name: episodes[name] for name in policies(learner, untrained)}

    return compiled_call, evaluate


def _summary(metrics: dict[str, np.ndarray]) -> dict[str, float]:
    """Means over the training steps of one call; returns over the episodes that ended in it."""
    counts = {name: float(metrics[name].sum()) for name in ("episodes", "falls", "finished_return")}
    learning = metrics["learning"]  # False while the replay is being filled: there is no loss yet
    summary = {}
    for name in metrics.keys() - counts.keys() - {"learning"}:
        values = metrics[name][learning] if name.startswith("learner/") else metrics[name]
        if values.size:
            summary[name] = float(np.mean(values))
    if counts["episodes"]:
        summary["episode_return"] = counts["finished_return"] / counts["episodes"]
    return summary | {name: counts[name] for name in ("episodes", "falls")}
