"""From a prompt to a clip: an image-to-video model animates the robot's start frame.

Axes: T frames, H rows, W columns.
"""

import dataclasses
import hashlib
import importlib.metadata
import inspect
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from nil_jax import envs
from nil_jax.files import one_line
from nil_jax.reference.prepare import Reference, ReferenceConfig, prepare_reference
from nil_jax.reference.start_frame import start_frame
from nil_jax.reference.video import Video, read_video, sidecar, write_video
from nil_jax.reference.video_models import VideoModel, best_device, find_model, load_pipeline
from nil_jax.rewards import Encoder

PROMPT = "The {body} agent is walking, camera follows the agent."  # body: "humanoid", "quadruped"
PACKAGES = ("nil-jax", "diffusers", "torch", "transformers")
RANKING_SIDE = 64  # of the masks that clips are ranked by, px
DTYPES, OFFLOADS = (None, "bfloat16", "float16", "float32"), ("none", "model", "sequential")
Rank = Callable[[envs.RobotEnv, Video], Mapping[str, float]]


@dataclass(frozen=True)
class GenerateConfig:
    """How a clip is generated. Where a value is None, the family of the model decides."""

    negative_prompt: str | None = None  # what should not be seen
    width: int | None = None  # px
    height: int | None = None  # px
    num_frames: int | None = None
    steps: int | None = None  # of denoising
    guidance: float | None = None  # how strictly the prompt is followed
    seed: int = 0
    num_videos: int = 1  # clips with the seeds seed, seed + 1, ..., of which the best one is kept
    dtype: Literal["bfloat16", "float16", "float32"] | None = None  # default: bfloat16, on a CPU float32
    offload: Literal["none", "model", "sequential"] = "none"  # keep on the GPU only the part or layer that works

    def __post_init__(self):
        ranges = {
            "width": (16, 4096),
            "height": (16, 4096),
            "num_frames": (2, 900),
            "steps": (1, 1000),
            "guidance": (0, 100),
            "seed": (0, 2**62),
            "num_videos": (1, 1000),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name}: expected a number from {low} to {high}, got {value}")
        for name, known in {"dtype": DTYPES, "offload": OFFLOADS}.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {known}, got {getattr(self, name)!r}")


def generate_reference(
    env: envs.RobotEnv,
    prompt: str | None = None,
    *,
    model: str | Path,
    output: str | Path | None = None,
    encoder: Encoder | None = None,
    progress: Callable[[str, float], None] | None = None,
    **settings: Any,
) -> Reference:
    """From a prompt to a Reference: generates a clip and prepares it.

    Args:
        env: The robot, from `nil_jax.envs.make`.
        prompt: As in `generate_clip`.
        model: As in `generate_clip`.
        output: Where the clip is kept, an mp4; None keeps only the Reference, so nothing if that cannot be made.
        encoder: As in `prepare_reference`.
        progress: Called with the name of the stage and its finished part in [0, 1].
        **settings: Fields of `GenerateConfig` and `ReferenceConfig`, and `rank` and `say` of `generate_clip`.

    Raises:
        ValueError: As `generate_clip` and `prepare_reference`; the clip of a model that draws no robot on a plain
            background cannot be prepared.
    """
    names = {field.name for field in dataclasses.fields(ReferenceConfig)}
    preparing = {name: settings.pop(name) for name in names & settings.keys()}
    ReferenceConfig(**preparing)  # refuses bad values now, not after hours of generation
    settings = {"rank": partial(first_look, **preparing)} | settings
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(output or Path(scratch) / "clip.mp4")
        video = generate_clip(env, prompt, model=model, output=path, progress=progress, **settings)
    return prepare_reference(env, video, encoder=encoder, progress=progress, **preparing)


def first_look(env: envs.RobotEnv, video: Video, **settings: Any) -> Mapping[str, float]:
    """How well a clip shows the robot: score and parts of its verdict (see `reference.verdict`), each in [0, 1].

    Whether the robot walks is not asked: one that stands still may win. `settings` are fields of `ReferenceConfig`; the
    sizes are small ones, and poses, which the verdict does not ask for, are fitted to the first frame alone.
    """
    small = {"mask_size": RANKING_SIDE, "frame_size": RANKING_SIDE, "track": False, "cycle": False}
    verdict = prepare_reference(env, video, **settings | small).provenance["verdict"]
    return {"score": verdict["score"]} | verdict["parts"]


def _print(line: str) -> None:
    print(line, file=sys.stderr)


def generate_clip(
    env: envs.RobotEnv,
    prompt: str | None = None,
    *,
    model: str | Path,
    output: str | Path,
    rank: Rank = first_look,
    progress: Callable[[str, float], None] | None = None,
    say: Callable[[str], None] = _print,
    **settings: Any,
) -> Video:
    """Generates clips from the robot's start frame, writes the best one and, beside it, how it was made (JSON).

    Each clip that is the best so far is written at once. The same seed gives the same clip on the same machine. On a
    GPU set XLA_PYTHON_CLIENT_PREALLOCATE=false before JAX first touches it, so that memory is left for the model.

    Args:
        env: The robot, from `nil_jax.envs.make`.
        prompt: What the robot does; None: it walks.
        model: Folder or Hugging Face id (with `@revision` if wanted) of an image-to-video model of diffusers.
        output: The mp4 to write; what is there is replaced, as is the JSON file of the same name.
        rank: Called with the robot and each of several clips; the highest `"score"` wins, and a ValueError is a zero.
        progress: Called with the name of the stage and its finished part in [0, 1].
        say: Called with a line about each setting that the model does not take as it is, and each clip of no use.
        **settings: Fields of `GenerateConfig`.

    Raises:
        ValueError: no such model, one that is not image-to-video, a setting out of range, or a clip that does not fit
            into the memory.
    """
    config, output, report = GenerateConfig(**settings), Path(output), progress or (lambda stage, part: None)
    if output.suffix.lower() != ".mp4":
        raise ValueError(f"output: expected a name that ends in .mp4, got {output}")
    report("find the model", 0.0)
    found = find_model(model)
    config = _resolved(config, found, say)
    prompt = _prompt(env, prompt, found, say)
    report("draw the start frame", 0.0)
    image = framed(start_frame(env, min(config.width, config.height)), config.width, config.height)
    report("load the model", 0.0)
    pipeline = load_pipeline(found, dtype=config.dtype, offload=config.offload)
    make = partial(_run, pipeline, _arguments(config, found, prompt) | {"image": Image.fromarray(image)})
    about = _provenance(env, config, found, prompt, image)
    output.parent.mkdir(parents=True, exist_ok=True)
    _keep_best(make, partial(_score, rank, env), config, about, output, report, say)
    return read_video(output)


def _keep_best(make, score, config, about, output, report, say) -> None:
    """Makes the clips one by one, and writes each that is the best so far: a run that is stopped leaves one."""
    clips: list[dict[str, Any]] = []
    kept: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.stem}.") as scratch:
        path = Path(scratch) / output.name
        for index in range(config.num_videos):
            name, seed = f"clip {index + 1} of {config.num_videos}", config.seed + index
            frames = make(seed, partial(report, name))
            write_video(path, frames, about["fps"])
            report(f"{name}: rank", 1.0)
            clips.append({"seed": seed} | (score(path) if config.num_videos > 1 else {}))
            if "refused" in clips[-1]:
                say(f"{name} gets a zero: {clips[-1]['refused']}")
            if clips[-1] is max(clips, key=lambda clip: clip.get("score", 0.0)):
                size = {"width": frames.shape[2], "height": frames.shape[1], "num_frames": len(frames)}
                kept = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "seed": seed} | size
                os.replace(path, output)
            sidecar(output).write_text(json.dumps(about | kept | {"clips": clips}, indent=2) + "\n")


def framed(picture: UInt8[np.ndarray, "S S 3"], width: int, height: int) -> UInt8[np.ndarray, "H W 3"]:
    """A square picture on white in the middle of a white frame."""
    side = len(picture)
    frame = np.full((height, width, 3), 255, np.uint8)
    top, left = (height - side) // 2, (width - side) // 2
    frame[top : top + side, left : left + side] = picture
    return frame


def _resolved(config: GenerateConfig, model: VideoModel, say: Callable[[str], None]) -> GenerateConfig:
    """The settings with what the family says where they say nothing, and with sizes that it takes."""
    family = model.family
    wanted = {
        "width": config.width or family.size[0],
        "height": config.height or family.size[1],
        "num_frames": config.num_frames or model.usual_frames,
    }
    taken = {name: family.nearest_side(wanted[name]) for name in ("width", "height")}
    taken["num_frames"] = family.nearest_frames(wanted["num_frames"])
    rules = dict.fromkeys(("width", "height"), f"multiples of {family.multiple}")
    rules["num_frames"] = f"k * {family.frame_step} + 1"
    for name, value in taken.items():
        if value != wanted[name]:
            say(f"{name}: {family.name} takes {rules[name]}; {value} instead of {wanted[name]}")
    if not family.sized and (config.width or config.height):
        say(f"width, height: {family.name} chooses its size, near the aspect of {taken['width']}x{taken['height']}")
    if config.negative_prompt is not None and not family.negative_prompt:
        say(f"negative_prompt: {family.name} takes none, it is not used")
    if config.guidance is not None and not family.guidance:
        say(f"guidance: {family.name} takes none, it is not used")
    return dataclasses.replace(
        config,
        **taken,
        steps=config.steps or model.default("num_inference_steps"),
        dtype=config.dtype or ("float32" if best_device() == "cpu" else "bfloat16"),
        negative_prompt=config.negative_prompt if family.negative_prompt else None,
        guidance=config.guidance if family.guidance else None,
    )


def _prompt(env: envs.RobotEnv, prompt: str | None, model: VideoModel, say: Callable[[str], None]) -> str | None:
    if model.family.prompt:
        return PROMPT.format(body=env.spec.body) if prompt is None else prompt
    if prompt is not None:
        say(f"prompt: {model.family.name} takes none, it moves the picture as it likes")
    return None


def _arguments(config: GenerateConfig, model: VideoModel, prompt: str | None) -> dict[str, Any]:
    """Arguments of the pipeline's call; only those that its family has."""
    family = model.family
    arguments = dict(family.defaults) | {
        "num_frames": config.num_frames,
        "num_inference_steps": config.steps,
        "output_type": "np",
    }
    if family.sized:
        arguments |= {"width": config.width, "height": config.height}
    if family.fps_argument:
        arguments[family.fps_argument] = family.fps
    if prompt is not None:
        arguments["prompt"] = prompt
    if config.negative_prompt is not None:
        arguments["negative_prompt"] = config.negative_prompt
    if config.guidance is not None:
        arguments |= dict.fromkeys(family.guidance, config.guidance)
    return arguments


def _run(
    pipeline: Any, arguments: Mapping[str, Any], seed: int, report: Callable[[float], None]
) -> UInt8[np.ndarray, "T H W 3"]:
    """One clip."""
    import torch

    def after_step(pipeline: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        report((step + 1) / pipeline.num_timesteps)
        return tensors

    report(0.0)
    arguments = dict(arguments)
    if "callback_on_step_end" in inspect.signature(type(pipeline).__call__).parameters:
        arguments["callback_on_step_end"] = after_step
    # Drawn on the CPU, whose numbers do not depend on the kind of GPU.
    generator = torch.Generator("cpu").manual_seed(seed)
    try:
        frames = np.asarray(pipeline(**arguments, generator=generator).frames[0])
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"memory: expected a clip that fits, got {one_line(error)}; type: --offload model, or lower --width, "
            "--height or --num-frames"
        ) from None
    except ValueError as error:
        raise ValueError(
            f"model: expected settings that {type(pipeline).__name__} takes, got: {one_line(error)}"
        ) from error
    if not np.isfinite(frames).all():
        raise ValueError("dtype: expected a clip of finite numbers, got NaN; type: --dtype float32 or bfloat16")
    return np.round(255 * np.clip(frames, 0, 1)).astype(np.uint8)


def _score(rank: Rank, env: envs.RobotEnv, path: Path) -> dict[str, Any]:
    """What the ranking says; a clip that it refuses gets a zero and the reason."""
    try:
        return {name: round(float(value), 4) for name, value in rank(env, read_video(path)).items()}
    except ValueError as error:
        return {"score": 0.0, "refused": one_line(error)}


def _provenance(
    env: envs.RobotEnv,
    config: GenerateConfig,
    model: VideoModel,
    prompt: str | None,
    image: UInt8[np.ndarray, "H W 3"],
) -> dict[str, Any]:
    """How the clip is made, as JSON values: enough to make it again."""
    family = model.family
    guidance = config.guidance
    if guidance is None and family.guidance:
        guidance = model.default(family.guidance[0])
    return {
        "model": {"name": model.name, "family": family.name, "pipeline": family.pipeline} | model.identity(),
        "robot": env.spec.name,
        "fingerprint": env.fingerprint,
        "prompt": prompt,
        "negative_prompt": config.negative_prompt,
        "fps": family.fps,
        "steps": config.steps,
        "guidance": guidance,
        "dtype": config.dtype,
        "device": best_device(),
        "offload": config.offload,
        "start_frame_sha256": hashlib.sha256(np.ascontiguousarray(image)).hexdigest(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
