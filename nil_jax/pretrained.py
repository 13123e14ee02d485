"""Policies that ship with the package, each one folder of `policies/`: `policy.safetensors` and `policy.json`.

The tensors are the actor that acts without exploring, the statistics of its observations, the motion that it follows
and the reference's camera. The clip itself is not kept: the motion takes its place, drawn by our renderer.
"""

import dataclasses
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save_file

from nil_jax.config import Config, load_config
from nil_jax.evaluation import Policy
from nil_jax.files import check_fields, read_json, read_tensors
from nil_jax.learning import LearnerState, make_policy
from nil_jax.reference import draw_reference, with_embeddings
from nil_jax.reference.prepare import CAMERA_ARRAYS, MAX_TICKS
from nil_jax.rendering import Camera
from nil_jax.rollout import ImitationEnv
from nil_jax.run import SavedRun

WEIGHTS, ABOUT, SETTINGS = "policy.safetensors", "policy.json", "config.json"
CAMERA = ("position", "rotation", "focal", "center")
AXES = {"motion": 2, "start_qpos": 1, **{f"camera/{part}": shape for part, shape in CAMERA_ARRAYS.items()}}
FORMAT = "nil_jax_policy"
KEYS = {"format", "robot", "fingerprint", "fps", "loop", "source", "steps", "evaluation", "versions"}


@dataclass(frozen=True)
class _About:
    """Types of what policy.json says."""

    robot: str
    fingerprint: str
    fps: float
    loop: bool
    source: dict
    evaluation: dict
    versions: dict


@dataclass(frozen=True)
class Pretrained:
    """A trained policy with its environment."""

    name: str
    env: ImitationEnv
    policy: Policy  # deterministic; (observation, key) -> (action, extras)
    config: Config  # of its training
    evaluation: Mapping[str, Mapping[str, float]]  # at the end of its training, beside the controls
    about: Mapping[str, Any]  # clip, steps, versions


def list_pretrained() -> list[str]:
    """Names of the policies that `load_pretrained` knows, such as "unitree_h1/walk"."""
    root = resources.files("nil_jax.policies")
    robots = [folder for folder in root.iterdir() if folder.is_dir()]
    found = [f"{r.name}/{skill.name}" for r in robots for skill in r.iterdir() if (skill / ABOUT).is_file()]
    return sorted(found)


def load_pretrained(name: str | Path) -> Pretrained:
    """A policy that ships with the package, or one that `save_pretrained` wrote.

    Args:
        name: "unitree_h1/walk", one of `list_pretrained()`; or a folder.

    Raises:
        ValueError: an unknown name, or a folder that does not fit.
    """
    folder = Path(name)
    if str(name) in list_pretrained():
        folder = Path(str(resources.files("nil_jax.policies"))) / str(name)
    elif not (folder / ABOUT).is_file():
        raise ValueError(f"policy: expected one of {', '.join(list_pretrained())}, or a folder of one, got {name}")
    config, (about, tensors) = load_config(folder / SETTINGS), _read(folder)
    camera = Camera(**{part: jnp.asarray(tensors.pop(f"camera/{part}")) for part in CAMERA})
    motion, start = tensors.pop("motion"), tensors.pop("start_qpos")
    saved = SavedRun(folder, about["robot"], about["fingerprint"], config, None, None)
    robot = saved.make_robot()
    if motion.shape[1] != robot.mj_model.nq:
        raise ValueError(f"policy: expected poses of {robot.mj_model.nq} numbers in motion, got {motion.shape[1]}")
    reference = draw_reference(robot, motion, about["fps"], loop=about["loop"], camera=camera)
    reference = dataclasses.replace(reference, start_qpos=start, provenance=reference.provenance | about["source"])
    encoder = saved.load_encoder()
    if encoder is not None:
        reference = with_embeddings(reference, encoder)
    env, actor_critic = dataclasses.replace(saved, reference=reference).program_of(robot, encoder)
    learner = _filled(actor_critic.init(jax.random.key(0)), tensors)
    return Pretrained(
        str(name),
        env,
        make_policy(actor_critic, learner, deterministic=True),
        config,
        about["evaluation"],
        {key: about[key] for key in ("source", "steps", "versions")},
    )


def load_policies(name: str | Path) -> tuple[ImitationEnv, dict[str, Policy]]:
    """Environment and policies of a run's folder, or of a policy that ships with the package."""
    if not Path(name).exists() and Path(name).as_posix() in list_pretrained():
        found = load_pretrained(Path(name).as_posix())
        return found.env, {"policy": found.policy}
    return SavedRun.load(name).policies()


def save_pretrained(run: str | Path, folder: str | Path) -> None:
    """Writes the newest policy of a finished run into a new folder, without its clip.

    Raises:
        ValueError: no finished run, one whose reference has no motion, or a folder that exists.
    """
    saved, folder = SavedRun.load(run), Path(folder)
    if folder.exists():
        raise ValueError(f"output: expected a folder that is not there yet, got {folder}")
    reference = saved.reference
    if reference is None or reference.motion is None:
        raise ValueError(f"run: expected one whose reference has a motion, got {run}")
    results = saved.folder / "evaluation.json"
    if not results.is_file():
        raise ValueError(f"run: expected a finished run with evaluation.json, got {run}")
    _, actor_critic = saved.program()
    learner = saved.learner(actor_critic.init(jax.random.key(0)))
    tensors = {
        **_named(learner),
        "motion": np.asarray(reference.motion, np.float32),
        "start_qpos": np.asarray(reference.start_qpos, np.float32),
        **{f"camera/{part}": np.asarray(getattr(reference.camera, part), np.float32) for part in CAMERA},
    }
    known = reference.provenance
    source = {key: known[key] for key in ("source", "source_sha256", "speed", "cut") if key in known}
    about = {
        "format": FORMAT,
        "robot": saved.robot,
        "fingerprint": saved.fingerprint,
        "fps": reference.fps,
        "loop": reference.loop,
        "source": source,
        "steps": saved.step,
        "evaluation": json.loads(results.read_text()),
        "versions": {name: importlib.metadata.version(name) for name in ("nil-jax", "jax", "mujoco")},
    }
    folder.mkdir(parents=True)
    save_file(tensors, folder / WEIGHTS)
    (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n")
    (folder / SETTINGS).write_text((saved.folder / SETTINGS).read_text())


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What is known of a policy, and its tensors.

    Raises:
        ValueError: files that are missing, damaged, or hold something else.
    """
    try:
        about, tensors = read_json(folder / ABOUT, "policy"), read_tensors(folder / WEIGHTS, "policy")
        known = set(about)
    except ValueError as error:
        raise ValueError(f"policy: expected {ABOUT} and {WEIGHTS} in {folder}, got {error}") from None
    if not known >= KEYS or about["format"] != FORMAT:
        missing = ", ".join(sorted(KEYS - known)) or "another format"
        raise ValueError(
            f"policy: expected {FORMAT} with {', '.join(sorted(KEYS))} in {folder / ABOUT}; wrong: {missing}"
        )
    check_fields(_About, about, "policy")
    needed = {"motion", "start_qpos", *(f"camera/{part}" for part in CAMERA)}
    if not needed <= set(tensors):
        raise ValueError(
            f"policy: expected {', '.join(sorted(needed))} in {folder / WEIGHTS}, got {', '.join(tensors)}"
        )
    wrong = [name for name, size in AXES.items() if tensors[name].shape != size and tensors[name].ndim != size]
    if wrong:
        raise ValueError(f"policy: expected another shape of {wrong[0]}, got {tensors[wrong[0]].shape}")
    if not (0 < about["fps"] <= 1000 and 0 < len(tensors["motion"]) <= MAX_TICKS):
        raise ValueError(f"policy: expected fps in (0, 1000] and at most {MAX_TICKS} ticks, got {about['fps']}")
    if tensors["motion"].shape[1:] != tensors["start_qpos"].shape:
        raise ValueError("policy: expected poses of one size in motion and start_qpos, got others")
    return about, tensors


def _named(learner: LearnerState) -> dict[str, np.ndarray]:
    """What acts without exploring."""
    actor = flatten_dict(learner.average_actor, sep="/")
    statistics = {f"normalizer/{part}": getattr(learner.normalizer, part) for part in ("mean", "std")}
    named = {f"actor/{name}": leaf for name, leaf in actor.items()} | statistics
    return {name: np.asarray(leaf, np.float32) for name, leaf in named.items()}


def _filled(learner: LearnerState, tensors: Mapping[str, np.ndarray]) -> LearnerState:
    """The inverse of `_named`.

    Raises:
        ValueError: tensors that are missing, too many, or of another shape.
    """
    expected = {name: leaf.shape for name, leaf in _named(learner).items()}
    found = {name: leaf.shape for name, leaf in tensors.items()}
    if expected != found:
        differing = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
        raise ValueError(f"policy: expected the tensors of its settings, got others: {', '.join(differing)}")
    leaves = {name: jnp.asarray(leaf) for name, leaf in tensors.items()}
    tree = unflatten_dict(leaves, sep="/")
    statistics = dataclasses.replace(learner.normalizer, **tree["normalizer"])
    return dataclasses.replace(learner, average_actor=tree["actor"], normalizer=statistics)
