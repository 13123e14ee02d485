"""`train`: a host loop around one compiled training step, that of `program.py`."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from nil_jax import evaluation, parallel
from nil_jax.cache import gc_paused
from nil_jax.capacity import check_memory, check_plan, memory_plan, plan_in_words, with_fastest_renderer
from nil_jax.config import Config
from nil_jax.distill import fidelity
from nil_jax.envs import Env, RobotEnv
from nil_jax.files import check_fields
from nil_jax.learning import LearnerState, make_policy
from nil_jax.program import Program, TrainingState, compiled_programs, joined, make_program, part
from nil_jax.reference import (
    Reference,
    ReferenceConfig,
    Video,
    is_reference,
    prepare_reference,
    read_video,
    with_embeddings,
)
from nil_jax.reference.prepare import remarks
from nil_jax.report import PANEL, write_comparison, write_report
from nil_jax.rewards import Encoder
from nil_jax.rollout import ImitationEnv, control_steps_between
from nil_jax.run import Run, SavedRun, Stop

MANY = 1024  # robots that a CPU does not simulate in a reasonable time
CALLS = 200  # the compiled loop returns to the host about this often in a run, to show progress and to log


@dataclass(frozen=True)
class TrainingResult:
    """What `train` returns."""

    policy: Callable[[Array, PRNGKeyArray], tuple[Array, dict]]  # deterministic; (observation, key) -> (action, extras)
    evaluation: dict[str, dict[str, float]]  # of the last policy beside its controls, by name
    learner: LearnerState
    env: ImitationEnv  # with robot, reference, reward and encoder: what `nil_jax.evaluate` needs
    folder: Path | None  # of the run

    @property
    def reference(self) -> Reference | None:
        """What was imitated."""
        return self.env.reference


def train(
    env: Env | str,
    ref_video: str | Path | np.ndarray | Video | Reference | None = None,
    *,
    config: Config | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    source_fps: float | None = None,
    encoder: Encoder | str | None = None,
    progress: bool = True,
    callback: Callable[[int, dict[str, float], evaluation.Policy], None] | None = None,
    **overrides: Any,
) -> TrainingResult:
    """Trains a policy to move like the robot in a video.

    Args:
        env: from `nil_jax.envs.make`, or a name that it takes. A given env has its settings already: others in `config`
            are refused.
        ref_video: a video file, a folder of frames, frames [T, H, W, 3] uint8 with `source_fps`, or a prepared
            `Reference` (or the folder of one); without one the env's own reward is optimised.
        config: all settings; by default the preset "cpu", or what a resumed run began with.
        output: folder of the run (settings, metrics, checkpoints, curves, comparison video); without it nothing is
            written.
        resume: go on from the newest checkpoint in `output`, on a CPU exactly where it was (but for a replay that
            begins anew, with `checkpoint_replay=False`); with a larger `num_timesteps` further than was planned. Of the
            other settings `num_evals`, learning rates, `lr_decay` and `max_grad_norm` may change.
        source_fps: frames per second of an array or folder.
        encoder: embeds clips for the video term, or a name of one as `config` has it; None: that of the config.
        progress: show a progress bar.
        callback: called as `callback(step, metrics, policy)` after each evaluation and its checkpoint (`num_evals` of
            them), with the control steps so far, the policy's row of the evaluation and the policy as it is then;
            of several processes in the first one. A KeyboardInterrupt that it raises stops the run.
        **overrides: single fields of `config`, as in `train(env, video, num_timesteps=300_000)`; `reward="paper"` for
            the published terms.

    Returns:
        The trained policy, its evaluation and the final learner state.

    Raises:
        ValueError: a setting, a clip or a folder that does not fit, with what to do.
        FloatingPointError: the learner diverged; the last good checkpoint is kept and named.
        OSError: the run's folder cannot be written; the same.
        ConnectionError: another process of the run has gone; the same.
    """
    encoder, named = _loaded_or_named(encoder)
    config = _settings(config, overrides | named, output if resume else None)
    given = {"source_fps": source_fps, "encoder": encoder, "progress": progress, "callback": callback}
    return _train(env, ref_video, config, {config.train.seed: output}, resume=resume, **given)[0]


def train_seeds(
    env: Env | str,
    ref_video: str | Path | np.ndarray | Video | Reference | None = None,
    *,
    seeds: Sequence[int],
    output: str | Path | None = None,
    config: Config | None = None,
    resume: bool = False,
    source_fps: float | None = None,
    encoder: Encoder | str | None = None,
    progress: bool = True,
    **overrides: Any,
) -> list[TrainingResult]:
    """Trains one policy per seed, side by side as a batch axis of one compiled program.

    On an accelerator that one run does not fill, several take little longer than one. `num_timesteps`, `num_envs` and
    the replay are those of each.

    Args:
        env: as in `train`, like all that is not named here.
        ref_video: the same.
        seeds: different integers.
        output: folder in which each run gets one of its own, `seed_0` and so on, as `train` makes it.
        config: the same.
        resume: go on from the newest step that all seeds have a checkpoint of.
        source_fps: the same.
        encoder: the same.
        progress: the same, of the first seed.
        **overrides: the same.

    Returns:
        What `train` returns, for each seed.

    Raises:
        ValueError: no seeds, or one twice; and as `train` does, like the others. What ends one run ends all.
    """
    seeds = list(seeds)
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds: expected one or more different integers, got {seeds}")
    outputs = {seed: None if output is None else Path(output) / f"seed_{seed}" for seed in seeds}
    encoder, named = _loaded_or_named(encoder)
    config = _settings(config, overrides | named, outputs[seeds[0]] if resume else None)
    given = {"source_fps": source_fps, "encoder": encoder, "progress": progress}
    return _train(env, ref_video, config, outputs, resume=resume, **given)


def _loaded_or_named(encoder: Encoder | str | None) -> tuple[Encoder | None, dict[str, str]]:
    """An encoder that is given, and the setting by which another one is named."""
    return (None, {"encoder": encoder}) if isinstance(encoder, str) else (encoder, {})


def _settings(config: Config | None, overrides: dict[str, Any], resumed: str | Path | None) -> Config:
    """The settings of a run; one that goes on has those that it began with, where none are given."""
    saved = None if resumed is None else SavedRun.load(resumed).config
    config = (config or saved or Config()).with_fields(**overrides)
    name = config.train.encoder
    if name not in (None, "student", "i3d") and Path(name).is_dir():  # the run may be evaluated from another folder
        config = config.with_fields(encoder=str(Path(name).resolve()))
    # A replay never holds more than the run makes, and keeps its size when the run goes on.
    num_envs = config.train.num_envs
    steps = max(-(-config.train.num_timesteps // num_envs), config.learner.n_step)
    most = saved.learner.replay_size if saved else steps * num_envs
    return config.with_fields(replay_size=min(config.learner.replay_size, most))


def _train(
    env: Env | str,
    ref_video: Any,
    config: Config,
    outputs: dict[int, str | Path | None],  # by seed
    *,
    resume: bool,
    source_fps: float | None,
    encoder: Encoder | None,
    progress: bool,
    callback: Callable | None = None,
) -> list[TrainingResult]:
    if isinstance(env, str):
        from nil_jax.envs import make

        env = make(env, config.env)
    if ref_video is not None and not isinstance(env, RobotEnv):
        raise ValueError(f"env: expected a robot, from nil_jax.envs.make, beside a clip, got {type(env).__name__}")
    given = Reference.load(ref_video) if is_reference(ref_video) else ref_video
    if source_fps is not None and (given is None or isinstance(given, Reference)):
        raise ValueError(f"source_fps: expected it beside a clip that is still to be prepared, got {source_fps} alone")
    config = _as_given(config, env, given).with_fields(num_devices=config.train.num_devices or jax.device_count())
    runs = [
        Run.open(output, config.with_fields(seed=seed), env, resume=resume, progress=progress and i == 0)
        for i, (seed, output) in enumerate(outputs.items())
    ]
    run = runs[0]
    encoder = encoder or _encoder(config, run, given if run.reference is None else run.reference)
    if run.encoder not in (None, encoder and encoder.digest):
        raise ValueError("encoder: expected the one that the run began with, got another; train(encoder=...) takes it")
    reference = _reference(env, given, config, source_fps, run)
    if reference is not None and encoder is not None:
        _warn_of_stranger(encoder, env, run)
        reference = with_embeddings(reference, encoder)
    imitation = ImitationEnv(env, reference, config.reward, encoder, config.imitation)
    imitation = _checked(imitation, config, run, len(runs))
    try:
        return _train_side_by_side(make_program(imitation, config, len(runs)), config, runs, callback)
    except KeyboardInterrupt:
        run.say(run.interrupted())
        raise
    except OSError as error:
        if run.folder is None or isinstance(error, BrokenPipeError):  # nothing is written, or the reader has gone
            raise
        raise OSError(run.unwritable(error)) from error
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise ValueError(run.out_of_memory()) from error
        if jax.process_count() == 1:
            raise
        raise ConnectionError(run.alone()) from error
    finally:
        for run in runs:
            run.close()


def _as_given(config: Config, env: Env, reference: Any) -> Config:
    """The settings as the robot and the reference have them, which are made already.

    Raises:
        ValueError: a setting of theirs that is neither its default nor theirs, and would have no effect.
    """
    if isinstance(env, RobotEnv):
        advice = "make the env with it: nil_jax.envs.make(name, config.env)"
        config = replace(config, env=_as_made(config.env, dataclasses.asdict(env.config), advice))
    if isinstance(reference, Reference):
        made = {f.name for f in dataclasses.fields(ReferenceConfig)} & reference.provenance.keys()
        made = {name: reference.provenance[name] for name in made}
        check_fields(ReferenceConfig, made, "reference")
        advice = "the reference is prepared; give `nil-jax prepare`, or `train` with the clip, that setting"
        config = replace(config, reference=_as_made(config.reference, made, advice))
    return config


def _as_made(settings: Any, made: Mapping[str, Any], advice: str) -> Any:
    for setting in dataclasses.fields(settings):
        asked = getattr(settings, setting.name)
        if setting.name in made and asked not in (setting.default, made[setting.name]):
            raise ValueError(f"{setting.name}: expected {made[setting.name]!r}, got {asked!r}; {advice}")
    return replace(settings, **made)


def _encoder(config: Config, run: Run, clip: Any) -> Encoder | None:
    if clip is None:
        return None
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
        f"own, type: nil-jax distill {env.spec.handle} -o my_student{_feet(env)}"
    )


def _feet(env: RobotEnv) -> str:
    """The flag that names the robot's feet to another command."""
    return f" --feet {' '.join(env.config.feet)}" if env.config.feet else ""


def _reference(env: Env, given: Any, config: Config, source_fps: float | None, run: Run) -> Reference | None:
    if run.resume:
        if given is not None:
            _check_same_clip(run.reference, given, source_fps)
        return run.reference
    if given is not None and not isinstance(given, Reference):
        control_steps_between(env.dt, config.reference.fps)  # refused before the clip is fitted, which takes minutes
        with run.stage("reference") as progress:
            settings = dataclasses.asdict(config.reference)
            given = prepare_reference(env, given, source_fps=source_fps, progress=progress, **settings)
    for line in remarks(given) if given is not None else ():
        run.say(line)
    return given


def _checked(env: ImitationEnv, config: Config, run: Run, count: int) -> ImitationEnv:
    """Refuses what does not fit into memory, or side by side; picks the renderer."""
    if config.train.num_envs >= MANY and jax.default_backend() == "cpu":
        run.say(
            f"warning: JAX sees no GPU here, and {config.train.num_envs:,} robots are many for a CPU (docs/gpus.md); "
            "to see what it has, type: python -c 'import jax; print(jax.devices())'"
        )
    if count > 1 and "warp" in (config.env.physics, config.env.renderer):
        raise ValueError(
            f"seeds: expected JAX's physics and renderer for several side by side, got physics={config.env.physics!r}, "
            f"renderer={config.env.renderer!r}; train one seed at a time, or make the env with 'jax' for both"
        )
    policies = 2 + len(evaluation.controls(env.action_size))  # trained and untrained ones beside their controls
    num_devices = config.train.num_devices or 1
    drawn = count * config.train.num_envs // num_devices
    check_memory(env, drawn, per_setting=count / num_devices)
    check_memory(env, policies * config.train.num_eval_envs, "num_eval_envs", policies)
    return with_fastest_renderer(env, drawn, run.say, run.renderer if count == 1 else "jax")


def _check_same_clip(reference: Reference | None, given: Any, source_fps: float | None) -> None:
    """A resumed run goes on with its own reference; another clip on the command line would be a misunderstanding."""
    if reference is None:
        same = False
    elif isinstance(given, Reference):
        same = given.masks.shape == reference.masks.shape and bool((given.masks == reference.masks).all())
    else:
        same = read_video(given, fps=source_fps).sha256 == reference.provenance.get("source_sha256")
    if not same:
        raise ValueError("resume: expected the clip that the run began with, got another; start a new run with -o")


def _train_side_by_side(
    program: Program, config: Config, runs: list[Run], callback: Callable | None
) -> list[TrainingResult]:
    """All runs in one program; what differs is their seeds."""
    env, count = program.env.env, len(runs)
    steps_per_tick = config.train.num_envs * env.control_steps_per_tick
    ticks_per_call = max(1, config.train.num_timesteps // steps_per_tick // CALLS)
    steps_per_call = ticks_per_call * steps_per_tick
    total = -(-config.train.num_timesteps // steps_per_call) * steps_per_call

    def keys() -> list[PRNGKeyArray]:
        return [jax.random.key(run.config.train.seed) for run in runs]

    with gc_paused():
        first = jax.jit(program.init, out_shardings=program.shardings).trace(jax.eval_shape(lambda: joined(keys())))
    _check_plan(env, first.out_info, config, runs)
    with runs[0].stage("compile"):
        init, call, evaluate = compiled_programs(program, config, first, ticks_per_call)
    for run in runs:
        run.start(env)
    state = init(joined(keys()))
    done = min(run.newest for run in runs)
    if done:
        outlines = [run.outline(part(state, i, count)) for i, run in enumerate(runs)]
        del state  # its memory is needed
        state = joined([run.restore(outline, done) for run, outline in zip(runs, outlines, strict=True)])
        state = state if count == 1 else jax.device_put(state, program.shardings)
    for run in runs:
        run.forget_newer(done)
        run.begin(done, total)
    episodes = []
    with Stop(runs[0].say) as stop:
        while done < total:
            started = time.perf_counter()
            state, metrics = call(state)
            metrics = jax.device_get(metrics)
            evals_before, evals = (n * config.train.num_evals // total for n in (done, done + steps_per_call))
            done += steps_per_call
            seconds = time.perf_counter() - started
            for i, run in enumerate(runs):
                summary = _summary(metrics if count == 1 else {name: value[:, i] for name, value in metrics.items()})
                run.log(done, summary, steps_per_call / seconds)
                if not all(np.isfinite(value) for name, value in summary.items() if name.startswith("learner/")):
                    raise FloatingPointError(run.divergence())
            if evals > evals_before:
                episodes = [evaluate(part(state.learner, i, count), key) for i, key in enumerate(keys())]
                for i, run in enumerate(runs):
                    row = evaluation.summary(episodes[i])["policy"]
                    run.checkpoint(done, part(state, i, count), row)
                    if callback is not None and parallel.is_first():
                        # A copy: the next call takes the memory of this state.
                        learner = jax.tree.map(jnp.copy, parallel.first_copy(part(state.learner, i, count)))
                        try:
                            callback(done, row, make_policy(program.actor_critic, learner, deterministic=True))
                        except KeyboardInterrupt:
                            stop.asked = True  # which the other processes are told, too
            if parallel.any_process(stop.asked):
                for i, run in enumerate(runs):
                    run.save(done, part(state, i, count))
                raise KeyboardInterrupt
    learners = [part(state.learner, i, count) for i in range(count)]
    if not episodes:  # the runs had ended before
        episodes = [evaluate(*pair) for pair in zip(learners, keys(), strict=True)]
    return [_result(program, *found) for found in zip(runs, learners, episodes, strict=True)]


def _result(program: Program, run: Run, learner: LearnerState, episodes: dict[str, Any]) -> TrainingResult:
    """Writes what belongs to the end of a run."""
    env, rows = program.env.env, evaluation.summary(episodes)
    run.finish(rows)
    writes = run.folder is not None and parallel.is_first()
    if writes and env.reference is not None:
        pictures = evaluation.episode_pictures(env, episodes["policy"], PANEL)
        write_comparison(run.folder / "comparison.mp4", env, pictures)
    if writes:
        write_report(run.folder)
    learner = parallel.first_copy(learner)
    policy = make_policy(program.actor_critic, learner, deterministic=True)
    return TrainingResult(policy, rows, learner, env, run.folder)


def _check_plan(env: ImitationEnv, shapes: TrainingState, config: Config, runs: list[Run]) -> None:
    """Tells what the runs will keep in memory, and refuses them if that is too much."""
    learner, num_envs, num_devices = config.learner, config.train.num_envs, config.train.num_devices or 1
    plan = memory_plan(shapes, env, len(runs) * num_envs // num_devices, num_devices)
    runs[0].say(f"memory: {plan_in_words(plan)}")
    check_plan(plan, learner.replay_size, learner.learning_starts, num_envs)


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
