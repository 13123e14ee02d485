"""The host side of a training run: its folder, what it prints, its checkpoints. Nothing here is compiled.

A run folder holds `run.json` (robot, versions), `config.json`, `reference/`, `metrics.jsonl`, `tensorboard/`,
`checkpoints/`, `evaluation.json`, `curves.png`, `comparison.mp4` and `report.html`.
"""

import contextlib
import fcntl
import importlib.metadata
import json
import platform
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import jax
import rich.markup
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from nil_jax import parallel
from nil_jax.checkpoint import Checkpoints, outline
from nil_jax.config import MAY_CHANGE, Config, differences, flatten, load_config, save_config
from nil_jax.envs import RobotEnv, make
from nil_jax.envs.physics import OVERFLOW
from nil_jax.envs.robot import DIVERGED
from nil_jax.evaluation import untrained_key
from nil_jax.files import printable, read_json
from nil_jax.learning import ActorCritic, make_actor_critic, make_policy
from nil_jax.metrics import MetricsLog, check_wandb, read_metrics, start_wandb
from nil_jax.reference import Reference
from nil_jax.rewards import Encoder
from nil_jax.rollout import ImitationEnv

LINE_EVERY = 30.0  # s; how often a run tells where it is if its output is no terminal, where a bar cannot move
PACKAGES = ("nil-jax", "jax", "jaxlib", "mujoco", "mujoco-mjx", "flax", "optax", "brax", "flashbax", "numpy")


class Stop:
    """While active, the first Ctrl-C, or a scheduler's SIGTERM, only asks for a stop; the next one stops at once."""

    def __init__(self, say: Callable[[str], None]):
        self.asked, self._say = False, say

    def __enter__(self) -> "Stop":
        # Python lets only the main thread handle signals; in others they work as before.
        listens = threading.current_thread() is threading.main_thread()
        self._before = {sign: signal.signal(sign, self._ask) for sign in (signal.SIGINT, signal.SIGTERM) if listens}
        return self

    def __exit__(self, *error: object) -> None:
        for sign, handler in self._before.items():
            signal.signal(sign, handler)

    def _ask(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self._say("stopping, with a checkpoint, as soon as the running steps are done; again to stop at once")


class Run:
    """One training run; `Run.open` makes it. Without a folder nothing is written, and all methods still work.

    Of several processes the first one writes and prints; checkpoints take part of each.
    """

    def __init__(self, folder: Path | None, config: Config, robot: Mapping[str, str], resume: bool, progress: bool):
        self.folder, self.config, self.robot, self.resume = folder, config, robot, resume
        self.console = Console(stderr=True, quiet=not (progress and parallel.is_first()))
        saved = SavedRun.load(folder) if resume else None
        self.reference, self.renderer = (saved.reference, saved.renderer) if saved else (None, None)
        self.encoder = saved.encoder if saved else None  # digest of the one that the run began with, if it is known
        self._metrics: MetricsLog | None = None
        self._checkpoints: Checkpoints | None = None
        self._lock: IO | None = None
        self._bar: Progress | None = None
        self._said = time.perf_counter()
        self._warned: set[str] = set()

    @classmethod
    def open(cls, output: str | Path | None, config: Config, env: Any, *, resume: bool, progress: bool) -> "Run":
        """Checks the folder; writes nothing yet.

        Raises:
            ValueError: a folder that already holds something, or, to resume, one that holds no run or another one.
        """
        robot = {"robot": env.spec.handle, "fingerprint": env.fingerprint} if hasattr(env, "spec") else {}
        folder = None if output is None else Path(output)
        if resume:
            _check_resume(folder, config, robot)
        elif folder is not None:
            _check_can_begin(folder)
        if config.train.wandb is not None:
            if folder is None:
                raise ValueError("wandb: expected a folder of the run, got none; give it with -o, or output=")
            check_wandb()
        parallel.wait_for_all("every process has looked at the folder")
        return cls(folder, config, robot, resume, progress)

    def start(self, env: ImitationEnv) -> None:
        """Writes what is known before training, once everything that the user gave has been found good."""
        if self.folder is None:
            return
        if parallel.is_first():
            self._write_settings(env)
        parallel.wait_for_all("the folder is there")
        self._checkpoints = Checkpoints(self.folder / "checkpoints")

    def _write_settings(self, env: ImitationEnv) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self.folder / "run.json")
        if self.resume:  # what is there already is written in one piece or not at all, so no kill can take it away
            save_config(self.config, self.folder / "config.json")
            return
        _check_can_begin(self.folder)  # another run may have begun in it meanwhile, and ended
        if env.reference is not None:
            env.reference.save(self.folder / "reference", overwrite=True)
        save_config(self.config, self.folder / "config.json")
        encoder = env.encoder.digest if env.encoder else None
        made = {"renderer": env.renderer_kind, "encoder": encoder, "versions": versions(), "device": device_name()}
        about = {**self.robot, **made}
        # Last and in one piece: a run that has something in this file has everything beside it.
        (self.folder / "run.json").write_text(json.dumps(about, indent=2) + "\n")

    def _start_wandb(self) -> Any:
        project = self.config.train.wandb
        if project is None:
            return None
        run = start_wandb(self.folder, project, {**flatten(self.config), **self.robot})
        where = f"offline; later, type: wandb sync {Path(run.dir).parent}" if run.offline else run.url
        self.say(f"Weights & Biases: {where}")
        return run

    @property
    def newest(self) -> int:
        """Control steps of the checkpoint that a run goes on from; 0 where none is saved yet."""
        return (self._checkpoints.latest or 0) if self.resume else 0

    def outline(self, state: Any) -> Any:
        """A state without the memory of what is in a checkpoint."""
        return _joined(state, outline(_parts(state, self.config.train.checkpoint_replay)))

    def restore(self, state: Any, step: int) -> Any:
        """The state of a checkpoint, in the structure of the given one or its outline."""
        parts = self._checkpoints.restore(_parts(state, self.config.train.checkpoint_replay), step)
        self.say(f"resumed at step {step:,}")
        return _joined(state, parts)

    def forget_newer(self, step: int) -> None:
        """Deletes checkpoints behind the step that a run goes on from.

        Of runs side by side that were killed between their checkpoints some have one more than the others.
        """
        if self._checkpoints is not None:
            self._checkpoints.forget_newer(step)

    def begin(self, done: int, total: int) -> None:
        """Opens the logs behind what is done, and starts the progress bar."""
        if self._checkpoints is not None and parallel.is_first():
            self._metrics = MetricsLog(self.folder, done, self._start_wandb())
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=self.console)
        self._task = self._bar.add_task("training", total=total, completed=done, status="")
        self._bar.start()

    def log(self, step: int, metrics: Mapping[str, float], sps: float) -> None:
        """One row of metrics behind each compiled call."""
        if self._metrics is not None:
            self._metrics.write(step, {**metrics, "sps": sps})
        self._warn(
            metrics,
            OVERFLOW,
            "contacts did not fit into the buffers of Warp's physics in {:.1%} of the steps and were lost; start again "
            f"with --buffer-margin {2 * self.config.env.buffer_margin:g}",
        )
        self._warn(
            metrics,
            DIVERGED,
            "the physics was not finite in {:.2%} of the steps, which ended those episodes; if it goes on, start again "
            f"with --sim-dt {self.config.env.sim_dt / 2:g}",
        )
        parts = [f"{sps:,.0f} steps/s"]
        if "episode_return" in metrics:
            parts.append(f"return {metrics['episode_return']:.1f}")
        if "reward/mask" in metrics:
            parts.append(f"IoU {metrics['reward/mask']:.2f}")
        parts.append(f"falls {metrics['falls']:.0f}")
        self._bar.update(self._task, completed=step, status="  ".join(parts))
        if not self.console.is_terminal and time.perf_counter() - self._said > LINE_EVERY:
            self._said = time.perf_counter()
            self.say(f"step {step:,}: " + "  ".join(parts))

    def _warn(self, metrics: Mapping[str, float], name: str, line: str) -> None:
        """Says a line once, when a share of steps is first above zero."""
        if metrics.get(name, 0.0) > 0 and name not in self._warned:
            self._warned.add(name)
            self.say(f"warning: {line.format(metrics[name])}")

    def checkpoint(self, step: int, state: Any, evaluation: Mapping[str, float]) -> None:
        """Saves the state and the evaluation that belongs to it."""
        self.say(f"step {step:,}: " + ", ".join(f"{name} {evaluation[name]:.2f}" for name in _shown(evaluation)))
        if self._metrics is not None:
            self._metrics.write(step, {f"evaluation/{name}": value for name, value in evaluation.items()})
        self.save(step, state)

    def save(self, step: int, state: Any) -> None:
        """Saves the state, unless that of this step is saved already."""
        if self.folder is not None and self._checkpoints.latest != step:
            self._checkpoints.save(step, _parts(state, self.config.train.checkpoint_replay))

    def interrupted(self) -> str:
        """What to tell on Ctrl-C."""
        return f"stopped; {self._kept}"

    def alone(self) -> str:
        """What to tell when another process of the run has gone."""
        return f"distributed: expected {jax.process_count()} processes, but one has gone; {self._kept}"

    def divergence(self) -> str:
        """What to tell when the learner diverges."""
        what = "the learner diverged (a loss or gradient is not finite)"
        return f"{what}; {self._kept}, and lower --critic-lr and --actor-lr"

    def out_of_memory(self) -> str:
        """What to tell when a device has less memory than was planned with."""
        needs = "memory: expected a run that fits beside what else is on the device, got one that does not"
        return f"{needs}; {self._kept}; type a smaller --num-envs, --batch-size or --replay-size"

    def unwritable(self, error: OSError) -> str:
        """What to tell when a file of the run cannot be written, as on a full disk."""
        return f"output: expected to write to {self.folder}, got: {error}; {self._kept}"

    @property
    def _kept(self) -> str:
        if self.resume and self._checkpoints is None:
            return "the run is as it was before"
        last = self._checkpoints.latest if self._checkpoints else None
        if not last:
            return "no checkpoint was saved yet"
        return f"the newest checkpoint is that of step {last:,}; go on from there with --resume"

    def finish(self, evaluation: Mapping[str, Mapping[str, float]]) -> None:
        """Stops the bar, prints the evaluation, writes it and the curves."""
        from nil_jax.report import curves

        self._stop_bar()
        self.console.print(evaluation_table(evaluation))
        if self.folder is None or not parallel.is_first():
            return
        (self.folder / "evaluation.json").write_text(json.dumps(evaluation, indent=2) + "\n")
        picture = curves(read_metrics(self.folder))
        if picture is not None:
            (self.folder / "curves.png").write_bytes(picture)

    def close(self) -> None:
        """Frees files; safe to call in any state."""
        self._stop_bar()
        for resource in (self._metrics, self._checkpoints, self._lock):
            if resource is not None:
                resource.close()

    def say(self, line: str) -> None:
        """One line for people."""
        self.console.print(printable(line), highlight=False, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Callable[[str, float], None]]:
        """Shows that something long is going on, and afterwards how long it took."""
        started = time.perf_counter()
        with self.console.status(f"{name} ...") as status:
            yield lambda stage, part: status.update(f"{name}: {stage} {part:.0%}")
        self.say(f"{name}: {time.perf_counter() - started:.1f} s")

    def _stop_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


@dataclass(frozen=True)
class SavedRun:
    """What a run folder holds, for evaluation."""

    folder: Path
    robot: str | None  # None: an environment of another kind
    fingerprint: str | None
    config: Config
    reference: Reference | None
    renderer: str | None  # what drew; decided when the run began where the settings say "auto"
    encoder: str | None = None  # digest of the one that it was trained with; None: none, or not known

    @classmethod
    def load(cls, folder: str | Path) -> "SavedRun":
        """Reads a run folder.

        Raises:
            ValueError: not a run folder.
        """
        folder = Path(folder)
        try:
            about = read_json(folder / "run.json", "run")
            # Other environments have no robot.
            known = [about["renderer"], about.get("robot"), about.get("fingerprint"), about.get("encoder")]
            if not all(value is None or isinstance(value, str) for value in known):
                raise ValueError(known)
            renderer, robot, fingerprint, encoder = known
        except (ValueError, KeyError):
            raise ValueError(
                f"run: expected a folder that `nil-jax train -o` made, got {folder}; it has no readable run.json"
            ) from None
        reference = Reference.load(folder / "reference") if (folder / "reference").is_dir() else None
        return cls(folder, robot, fingerprint, load_config(folder / "config.json"), reference, renderer, encoder)

    def learner(self, template: Any) -> Any:
        """The newest learner state, in the structure of `template`."""
        with self._checkpoints() as checkpoints:
            return checkpoints.restore({"learner": template})["learner"]

    def _checkpoints(self) -> contextlib.closing[Checkpoints]:
        if not (self.folder / "checkpoints").is_dir():
            raise ValueError(f"run: expected a checkpoint in {self.folder}, got none; train longer")
        return contextlib.closing(Checkpoints(self.folder / "checkpoints"))

    @property
    def step(self) -> int | None:
        """Control steps of the newest checkpoint."""
        with self._checkpoints() as checkpoints:
            return checkpoints.latest

    def make_robot(self) -> RobotEnv:
        """The robot of the run.

        Raises:
            ValueError: its model is another one than at the training, or it is no robot of this library.
        """
        if self.robot is None:
            raise ValueError(f"run: expected one of a robot, got {self.folder}, which trained another environment")
        robot = make(self.robot, self.config.env)
        if robot.fingerprint != self.fingerprint:
            raise ValueError(f"run: expected the robot it was trained with, but the model of {self.robot} has changed")
        return robot

    def load_encoder(self) -> Encoder | None:
        """The encoder of the run, if it has a video term; a warning where that is not at hand."""
        if not self.config.reward.uses_video:
            return None
        with contextlib.suppress(ValueError):
            encoder = self.config.train.load_encoder()
            if self.encoder in (None, encoder and encoder.digest):
                return encoder
        warnings.warn("the encoder that the run was trained with is not at hand; no video term", stacklevel=3)
        return None

    def program(self) -> tuple[ImitationEnv, ActorCritic]:
        """The environment of the run, and the functions of its learner."""
        return self.program_of(self.make_robot(), self.load_encoder())

    def program_of(self, robot: RobotEnv, encoder: Encoder | None) -> tuple[ImitationEnv, ActorCritic]:
        """The same, of what is loaded already."""
        config = self.config
        env = ImitationEnv(robot, self.reference, config.reward, encoder, config.imitation)
        if self.renderer is not None:
            env = env.with_renderer(self.renderer)
        return env, make_actor_critic(env.observation_size, env.action_size, config.learner)

    def policies(self) -> tuple[ImitationEnv, dict[str, Any]]:
        """The environment of the run, and its policies: the newest one and the untrained one."""
        env, actor_critic = self.program()
        template = actor_critic.init(untrained_key(jax.random.key(self.config.train.seed)))
        learners = {"policy": self.learner(template), "untrained policy": template}
        return env, {name: make_policy(actor_critic, learner, deterministic=True) for name, learner in learners.items()}


def evaluation_table(evaluation: Mapping[str, Mapping[str, float]]) -> Table:
    """Metrics as rows, policies as columns."""
    units = {"length": "s", "distance": "m", "speed": "m/s", "foot_slip": "m/s"}
    table = Table("", *evaluation)
    order = ("return", "return_std", "mask_iou", "mask_iou_shuffled", "length", "fall", "distance", "speed")
    found = next(iter(evaluation.values()))
    for name in [name for name in order if name in found] + [name for name in found if name not in order]:
        label = f"{name} [{units[name]}]" if name in units else name
        table.add_row(rich.markup.escape(label), *(f"{row[name]:.3f}" for row in evaluation.values()))
    return table


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def device_name() -> str:
    """The accelerator's name, or the CPU's architecture."""
    device = parallel.own_device()
    return device.device_kind if device.platform != "cpu" else f"cpu ({platform.machine()})"


def _check_can_begin(folder: Path) -> None:
    """Refuses a folder that holds more than a run that was killed before it began, whose run.json is still empty."""
    about = folder / "run.json"
    begun = about.is_file() and about.stat().st_size > 0
    if folder.exists() and (begun or not folder.is_dir() or (any(folder.iterdir()) and not about.is_file())):
        raise ValueError(
            f"output: expected a new or empty folder, got {folder}, which holds something; "
            "choose another folder, or go on with the run that is in it: --resume"
        )


def _locked(path: Path) -> IO:
    """The file, held until it is closed or the process ends, however it ends.

    Raises:
        ValueError: Another process holds it.
    """
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ValueError(
            f"output: expected a folder that no run writes to, got {path.parent}, where one is at work; choose another"
        ) from None
    return file


def _shown(evaluation: Mapping[str, float]) -> list[str]:
    return [name for name in ("return", "mask_iou", "distance", "fall") if name in evaluation]


def _parts(state: Any, with_replay: bool) -> dict[str, Any]:
    """The parts of a checkpoint: the learner apart, because evaluation needs it alone."""
    parts = {
        "learner": state.learner,
        "loop": {"env_state": state.env_state, "episode_return": state.episode_return, "key": state.key},
    }
    return parts | ({"replay": state.replay} if with_replay else {})


def _joined(state: Any, parts: Mapping[str, Any]) -> Any:
    loop = parts["loop"]
    replay = parts.get("replay", state.replay)
    return type(state)(parts["learner"], replay, loop["env_state"], loop["episode_return"], loop["key"])


def _check_resume(folder: Path | None, config: Config, robot: Mapping[str, str]) -> None:
    if folder is None:
        raise ValueError("resume: expected the folder of a run, got none; give it with -o")
    saved = SavedRun.load(folder)
    if robot.get("fingerprint") != saved.fingerprint:
        raise ValueError(f"resume: expected the robot of the run ({saved.robot}), got {robot.get('robot')}")
    changed = {name: both for name, both in differences(saved.config, config).items() if name not in MAY_CHANGE}
    if changed:
        listed = ", ".join(f"{name} {old!r} (got {new!r})" for name, (old, new) in changed.items())
        raise ValueError(f"resume: expected the settings of the run in {folder}: {listed}; start a new run with -o")
