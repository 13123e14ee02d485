"""Teach a robot a motor skill from one video. Exit codes: 0 done, 2 bad input, 1 a defect, 130 Ctrl-C."""

import contextlib
import dataclasses
import errno
import functools
import inspect
import io
import itertools
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from tyro.conf import OmitArgPrefixes, Positional, arg

from nil_jax import __version__, parallel
from nil_jax.cache import use_compilation_cache
from nil_jax.config import MAY_CHANGE, PRESETS, REWARDS, Config, load_config
from nil_jax.distill import DistillConfig
from nil_jax.files import one_line, printable
from nil_jax.reference import GenerateConfig, ReferenceConfig
from nil_jax.rewards import Pooling

OUT = Console()
ERR = Console(stderr=True)
Output = Annotated[Path, arg(aliases=["-o"])]
Robot = Positional[Annotated[str, arg(metavar="ROBOT")]]
Feet = tuple[str, ...] | None
Clip = Positional[Annotated[Path, arg(metavar="VIDEO")]]
FULL = (errno.ENOSPC, errno.EDQUOT)
RunFolder = Positional[Annotated[Path, arg(metavar="RUN")]]
# The nested settings, each field a flag of its own name.
Settings = OmitArgPrefixes[Config]


def robots(*, json_output: Annotated[bool, arg(name="json")] = False) -> None:
    """List the robots that can be trained, and where each model comes from.

    Args:
        json_output: print one JSON object instead of a table.
    """
    from nil_jax.envs import robots

    found = robots()
    if json_output:
        print(json.dumps({name: {"source": spec.source, "body": spec.body} for name, spec in found.items()}))
        return
    table = Table("robot", "body", "model from")
    for name, spec in found.items():
        table.add_row(name, spec.body, spec.source)
    OUT.print(table)
    OUT.print("or the path of any MJCF file (.xml) with one robot that faces +x")


def frame(
    robot: Robot,
    *,
    output: Output,
    size: int = 768,
    floor: bool = False,
    feet: Feet = None,
) -> None:
    """Render the start frame of a robot: side view, on white, for any image-to-video model.

    Args:
        robot: name or path of an MJCF file.
        output: image to write (.png).
        size: width and height, px.
        floor: draw the floor instead of plain white.
        feet: names of the foot bodies; the lowest leaf bodies by default.
    """
    from PIL import Image

    from nil_jax.envs import make
    from nil_jax.reference import start_frame

    _check_size(size)
    _check_new(output, (".png", ".jpg"))
    Image.fromarray(start_frame(make(robot, feet=feet), size, floor=floor)).save(output)
    _say(f"wrote {output}")


def generate(
    robot: Robot,
    *,
    model: str,
    output: Output,
    prompt: str | None = None,
    feet: Feet = None,
    config: OmitArgPrefixes[GenerateConfig] = GenerateConfig(),  # noqa: B008 (frozen)
) -> None:
    """Let an image-to-video model move the robot's start frame, and write the clip.

    Args:
        robot: name or path of an MJCF file.
        model: folder or Hugging Face id of a diffusers model: Wan, LTX, CogVideoX, HunyuanVideo or SVD.
        output: video to write (walk.mp4); walk.json beside it says how it was made.
        prompt: what the robot does; default: it walks.
        feet: names of the foot bodies; the lowest leaf bodies by default.
        config: settings.
    """
    from nil_jax.envs import make
    from nil_jax.reference import generate_clip

    # Read when JAX first touches the GPU, of whose memory it would otherwise take most: the video model needs it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    _check_new(output, (".mp4",))
    _check_new(output.with_suffix(".json"))
    with Progress(console=ERR, transient=True, disable=not ERR.is_terminal) as bar:
        task = bar.add_task("start", total=1.0)
        clip = generate_clip(
            make(robot, feet=feet),
            prompt,
            model=model,
            output=output,
            progress=lambda stage, part: bar.update(task, description=stage, completed=part),
            say=_say,
            **dataclasses.asdict(config),
        )
    next_step = f"look at it, then type: nil-jax prepare {robot} {output} -o {output.with_suffix('.ref')}"
    _say(f"{output}: {len(clip.frames)} frames at {clip.fps:g} per second, seed {clip.origin['seed']}; {next_step}")


def prepare(
    robot: Robot,
    video: Clip,
    *,
    output: Output,
    config: OmitArgPrefixes[ReferenceConfig] = ReferenceConfig(),  # noqa: B008 (frozen)
    encoder: str | None = None,
    encoder_pooling: Pooling | None = None,
    masks: Path | None = None,
    source_fps: float | None = None,
    feet: Feet = None,
    json_output: Annotated[bool, arg(name="json")] = False,
) -> None:
    """Turn a clip into a reference: masks, fitted camera and start pose, a verdict, and a preview to look at.

    Args:
        robot: name or path of an MJCF file.
        video: video file, or folder of frames.
        output: folder to make (walk.ref); it holds preview.mp4.
        config: settings.
        encoder: i3d, i3d:LAYER, or folder or Hugging Face id of a TimeSformer, to embed the clip now rather than before
            training.
        encoder_pooling: how its activations become one embedding: cls or mean of a TimeSformer, mean, grid2 or grid3 of
            I3D; the first of them by default.
        masks: video or folder of images with a mask for each frame of the clip (bright: robot), of the same size.
        source_fps: frames per second of the clip; a folder of frames needs it, a file brings its own.
        feet: names of the foot bodies, as they are given to train; the lowest leaf bodies by default.
        json_output: print one JSON object on standard output.
    """
    from nil_jax.envs import make
    from nil_jax.reference import (
        fit_in_words,
        hints,
        in_words,
        prepare_reference,
        read_masks,
        read_video,
        write_preview,
    )
    from nil_jax.rewards import load_encoder

    _check_new(output)
    if encoder is None and encoder_pooling is not None:
        raise ValueError(f"encoder_pooling: expected --encoder beside it, got {encoder_pooling} alone")
    env, clip = make(robot, feet=feet), read_video(video, fps=source_fps)
    loaded = None if encoder is None else load_encoder(encoder, encoder_pooling)
    with ERR.status("prepare ...") as status:
        reference = prepare_reference(
            env,
            clip,
            encoder=loaded,
            masks=None if masks is None else read_masks(masks, clip),
            progress=lambda stage, part: status.update(f"{stage} {part:.0%}"),
            **dataclasses.asdict(config),
        )
    reference.save(output)
    write_preview(output / "preview.mp4", reference, env, clip)
    verdict = reference.provenance["verdict"]
    length = {"ticks": len(reference.masks), "duration": len(reference.masks) / reference.fps}
    made = dict(reference.provenance) | verdict | length | {"travel_speed": reference.travel_speed}
    if json_output:
        print(json.dumps(made))
    else:
        size = f"{made['ticks']} ticks at {reference.fps:g} per second"
        seen = f"{size}, {fit_in_words(reference)}; look at {output / 'preview.mp4'}"
        for line in (seen, in_words(verdict), *hints(made)):
            _say(f"{output}: {line}")


def train(
    robot: Robot,
    video: Clip,
    *,
    output: Output,
    config: Settings = Config(),  # noqa: B008 (frozen)
    preset: Literal["cpu", "gpu", "paper"] = "cpu",
    reward: Literal["default", "paper"] = "default",
    source_fps: float | None = None,
    resume: bool = False,
    seeds: tuple[int, ...] = (),
    distributed: bool = False,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Train a policy to move like the robot in a video.

    Args:
        robot: name or path of an MJCF file.
        video: video file, folder of frames, or a reference that `nil-jax prepare` made.
        output: folder of the run.
        config: settings.
        preset: settings to start from; single flags change them. A resumed run starts from its own.
        reward: terms and weights to start from; paper has those of arXiv 2503.10626.
        source_fps: frames per second of the clip; a folder of frames needs it, a file brings its own.
        resume: go on with the run in the output folder, with --num-timesteps further than was planned.
        seeds: train one policy per seed, side by side in one program; each gets a folder seed_N in the output folder.
        distributed: join the other processes of this run, which SLURM, Open MPI, Kubernetes or a TPU pod started.
        coordinator: HOST:PORT of the first process, if nothing of these did.
        num_processes: how many there are.
        process_id: which one this is, from 0.
    """
    import nil_jax

    given = {"coordinator_address": coordinator, "num_processes": num_processes, "process_id": process_id}
    if distributed:
        parallel.join(**given)
    elif given != dict.fromkeys(given):
        raise ValueError("coordinator, num_processes, process_id: expected them with --distributed, got them without")
    elif config.train.num_devices:
        parallel.use_cpu_devices(config.train.num_devices)
    del preset, reward  # `main` has read them: they set the defaults of the other flags
    given = {"config": config, "output": output, "resume": resume, "source_fps": source_fps}
    env = nil_jax.envs.make(robot, config.env)
    if seeds:
        nil_jax.train_seeds(env, video, seeds=seeds, **given)
    else:
        nil_jax.train(env, video, **given)


def evaluate(
    run: RunFolder,
    *,
    num_envs: int = 16,
    seed: int = 0,
    at_rest: bool = False,
    json_output: Annotated[bool, arg(name="json")] = False,
) -> None:
    """Evaluate the newest policy of a run beside its controls.

    Args:
        run: folder of the run, or a policy that ships with the package, such as unitree_h1/walk.
        num_envs: episodes of each policy.
        seed: of the starts.
        at_rest: start at rest, standing; otherwise in the clip's first pose and as fast as it is there, if the training
            does so.
        json_output: print one JSON object on standard output.
    """
    from nil_jax import evaluation
    from nil_jax.pretrained import load_policies
    from nil_jax.run import evaluation_table

    env, policies = load_policies(run)
    policy = policies.pop("policy")
    rows = evaluation.evaluate(env, policy, others=policies, num_envs=num_envs, seed=seed, at_rest=at_rest)
    if json_output:
        print(json.dumps(rows))
    else:
        OUT.print(evaluation_table(rows))


def render(run: RunFolder, *, output: Output, seed: int = 0, size: int = 320) -> None:
    """Write a video of the newest policy of a run, side by side with the reference.

    Args:
        run: folder of the run, or a policy that ships with the package, such as unitree_h1/walk.
        output: video to write (.mp4).
        seed: of the start.
        size: of the rendered robot, px.
    """
    import jax

    from nil_jax.evaluation import compiled_episodes, episode_pictures
    from nil_jax.pretrained import load_policies
    from nil_jax.report import write_comparison

    _check_size(size)
    _check_new(output, (".mp4",))
    env, policies = load_policies(run)
    if env.reference is None:
        raise ValueError(f"run: expected one with a reference video, got {run}, which was trained without")
    policy = {"policy": policies["policy"]}
    episodes = compiled_episodes(env, policy, 1, jax.random.key(seed))
    write_comparison(output, env, episode_pictures(env, episodes["policy"], size))
    _say(f"wrote {output}")


def export(run: RunFolder, *, output: Output) -> None:
    """Write the newest policy of a run as files that run without this library: StableHLO, MJCF and JSON.

    Args:
        run: folder of the run, or a policy that ships with the package, such as unitree_h1/walk.
        output: folder to make.
    """
    from nil_jax.export import export_policy
    from nil_jax.pretrained import load_policies

    _check_new(output)
    env, policies = load_policies(run)
    export_policy(env, policies["policy"], output)
    _say(f"wrote {output}")


def distill(
    robots: Positional[Annotated[list[str], arg(metavar="ROBOT [ROBOT ...]")]],
    *,
    output: Output,
    teacher: str = "none",
    config: OmitArgPrefixes[DistillConfig] = DistillConfig(),  # noqa: B008 (frozen)
    feet: Feet = None,
    json_output: Annotated[bool, arg(name="json")] = False,
) -> None:
    """Teach a small encoder where the bodies of these robots are, and what a large one sees of them.

    Args:
        robots: names or paths of MJCF files.
        output: folder to make; then train with --encoder FOLDER.
        teacher: none, for poses alone; i3d, i3d:LAYER, or folder or id of a TimeSformer.
        config: settings.
        feet: names of the foot bodies, as they are given to train; the lowest leaf bodies by default.
        json_output: print one JSON object on standard output.
    """
    from nil_jax.distill import distill
    from nil_jax.envs import make
    from nil_jax.rewards import load_encoder

    _check_new(output)
    if str(output) in ("student", "i3d"):
        raise ValueError(f"output: expected another name, got {output}, which --encoder takes for one that ships")
    loaded = None if teacher == "none" else load_encoder(teacher)
    with Progress(console=ERR, transient=True, disable=not ERR.is_terminal) as bar:
        task = bar.add_task("start", total=1.0)
        found = distill(
            [make(robot, feet=feet) for robot in robots],
            loaded,
            output,
            config=config,
            progress=lambda stage, part: bar.update(task, description=stage, completed=part),
        )
    if json_output:
        print(json.dumps(found))
    else:
        learned = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in found.items())
        _say(f"{output}: {learned}; type: --encoder {output}")


def _say(line: str) -> None:
    """One line for people; brackets in names are no markup."""
    ERR.print(printable(line), highlight=False, markup=False, soft_wrap=True)


def _check_size(size: int) -> None:
    if not 16 <= size <= 4096:
        raise ValueError(f"size: expected 16 to 4096 px, got {size}")


def _check_new(output: Path, endings: tuple[str, ...] = ()) -> None:
    if endings and output.suffix.lower() not in endings:
        raise ValueError(f"output: expected a name that ends in {' or '.join(endings)}, got {output}")
    if output.exists():
        raise ValueError(f"output: expected a name that is not taken, got {output}, which exists; choose another")
    if not output.parent.is_dir():
        raise ValueError(f"output: expected a folder {output.parent}, which is not there; make it first")
    if not os.access(output.parent, os.W_OK | os.X_OK):
        raise ValueError(f"output: expected a folder that may be written, got {output.parent}; choose another")


COMMANDS = {
    "robots": robots,
    "frame": frame,
    "generate": generate,
    "prepare": prepare,
    "distill": distill,
    "train": train,
    "eval": evaluate,
    "render": render,
    "export": export,
}


def main(argv: list[str] | None = None) -> None:
    """Entry point of the command `nil-jax`."""
    argv = sys.argv[1:] if argv is None else argv
    if argv == ["--version"]:
        print(f"nil_jax {__version__}")
        return
    use_compilation_cache()
    guarded(lambda: _parsed(argv)(), "nil-jax")


def guarded(command: Callable[[], None], name: str) -> None:
    """Runs a command; what this package refuses ends it with one line behind the command's name, and exit code 2."""
    try:
        command()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has gone
        sys.stderr.close()
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        # The system names a file that it refuses, wherever that is found out; but a full disk is found out in no file.
        refused = isinstance(error, OSError) and (error.filename is not None or error.errno in FULL)
        if not (_is_ours(error) or refused):
            raise
        _refuse(f"{name}: {error}")
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)):
            raise
        _refuse(f"{name}: memory: expected sizes that fit into that of this machine, got: {one_line(error)}")


def _refuse(line: str) -> None:
    ERR.print(printable(line), style="red", highlight=False, markup=False, soft_wrap=True)
    parallel.leave(2)


def _parsed(argv: list[str]) -> Callable[[], None]:
    """The command that the arguments name, bound to them. What tyro cannot parse, it says itself, and exits."""

    def bound(command: Callable[..., None]) -> Callable[..., Callable[[], None]]:
        return functools.wraps(command)(lambda *args, **kwargs: functools.partial(command, *args, **kwargs))

    commands = {name: bound(command) for name, command in (COMMANDS | {"train": _with_preset(argv)}).items()}
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.extras.subcommand_cli_from_dict(
                commands, prog="nil-jax", args=argv, description=__doc__.splitlines()[0]
            )
    except SystemExit as stop:
        # A setting out of range is refused by our own settings, in one line; tyro would frame it and name its insides.
        refused = stop.__context__
        while refused is not None and not (isinstance(refused, ValueError) and _is_ours(refused)):
            refused = refused.__context__
        if refused is not None:
            raise refused from None
        sys.stderr.write(said.getvalue())
        raise


def _with_preset(argv: list[str]):
    """The command `train` with the defaults of the preset and the reward, or of the run to resume, that are named."""
    words = [part for word in argv for part in _apart(word)]

    def named(*flags: str) -> str | None:
        return next((b for a, b in itertools.pairwise(words) if a in flags), None)

    fields = dict(PRESETS.get(named("--preset") or "cpu", {}))  # an unknown name is refused by the parser
    if (reward := named("--reward")) in REWARDS:
        fields["reward"] = reward
    saved = _saved_config(Path(named("-o", "--output") or "")) if "--resume" in words else None
    if saved:
        fields = {name: value for name, value in fields.items() if name not in MAY_CHANGE}
    chosen = (saved or Config()).with_fields(**fields)
    signature = inspect.signature(train)
    parameters = [p.replace(default=chosen) if p.name == "config" else p for p in signature.parameters.values()]

    @functools.wraps(train)
    def command(*args, **kwargs):
        return train(*args, **kwargs)

    command.__signature__ = signature.replace(parameters=parameters)
    return command


def _apart(word: str) -> list[str]:
    """Flag and value of --output=FOLDER or -oFOLDER; any other word as it is."""
    if word.startswith("-o") and word != "-o":
        return ["-o", word[2:].removeprefix("=")]
    return word.split("=", 1) if word.startswith("--") else [word]


def _saved_config(folder: Path) -> Config | None:
    """The settings of the run in a folder, or of the first of several seeds; None: what lacks, the training says."""
    paths = [folder / "config.json", *sorted(folder.glob("seed_*/config.json"))]
    found = next((path for path in paths if path.is_file()), None)
    with contextlib.suppress(ValueError):
        return found and load_config(found)


def _is_ours(error: BaseException) -> bool:
    """Whether the error was raised by this package on purpose: the message of any other is a defect's."""
    frames = traceback.extract_tb(error.__traceback__)
    roots = [str(Path(sys.modules[name].__file__).parent) for name in ("nil_jax", "nil_jax.envs", "nil_jax.rewards")]
    return bool(frames) and any(frames[-1].filename.startswith(root) for root in roots)


if __name__ == "__main__":
    main()
