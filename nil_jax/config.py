"""All settings of a run in one frozen tree, its presets, and how it is stored."""

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nil_jax.envs import EnvConfig
from nil_jax.files import check_fields, one_line, read_json
from nil_jax.learning import LearnerConfig
from nil_jax.reference import ReferenceConfig
from nil_jax.rewards import Encoder, Pooling, RewardConfig, load_encoder
from nil_jax.rollout import ImitationConfig

MOST_ENVS = 2**20


@dataclass(frozen=True)
class TrainConfig:
    """The run around the learner."""

    num_timesteps: int = 1_000_000  # control steps over all environments
    num_envs: int = 128
    num_devices: int | None = None  # that share environments, replay and batches; None: all that JAX has
    seed: int = 0
    num_evals: int = 10  # evaluations over the run, the last one at its end; a checkpoint is saved with each
    num_eval_envs: int = 16
    checkpoint_replay: bool = True  # exact resume needs the replay; without it checkpoints are small
    encoder: str | None = "student"  # or i3d[:LAYER], or folder or id of a student or TimeSformer; None: no video term
    encoder_pooling: Pooling | None = None  # None: cls of a TimeSformer, mean of I3D
    encoder_dtype: Literal["float32", "bfloat16"] = "float32"  # of a TimeSformer or I3D
    wandb: str | None = None  # project of Weights & Biases that gets the metrics too

    def __post_init__(self):
        for name in ("num_timesteps", "num_envs", "num_evals", "num_eval_envs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected an integer >= 1, got {getattr(self, name)}")
        if max(self.num_envs, self.num_eval_envs) > MOST_ENVS:
            got = f"{self.num_envs} and {self.num_eval_envs}"
            raise ValueError(f"num_envs, num_eval_envs: expected at most {MOST_ENVS:,}, got {got}")
        if self.num_devices is not None and self.num_devices < 1:
            raise ValueError(f"num_devices: expected an integer >= 1, got {self.num_devices}")
        if not 0 <= self.seed < 2**32:  # JAX's keys have 32 bits of it
            raise ValueError(f"seed: expected an integer from 0 to 2^32 - 1, got {self.seed}")
        if self.num_timesteps < self.num_envs:
            raise ValueError(f"num_timesteps: expected at least num_envs ({self.num_envs}), got {self.num_timesteps}")

    def load_encoder(self) -> Encoder | None:
        """The encoder that is named here."""
        return load_encoder(self.encoder, self.encoder_pooling, self.encoder_dtype) if self.encoder else None


@dataclass(frozen=True)
class Config:
    """Everything that decides a run. Field names are unique over all parts, so each is one flag of the command line."""

    train: TrainConfig = field(default_factory=TrainConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    imitation: ImitationConfig = field(default_factory=ImitationConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)

    def __post_init__(self):
        if self.learner.learning_starts >= self.train.num_timesteps:
            raise ValueError(
                f"learning_starts: expected fewer steps than num_timesteps ({self.train.num_timesteps}), got "
                f"{self.learner.learning_starts}; type: --learning-starts {self.train.num_timesteps // 10}"
            )

    def with_fields(self, **values: Any) -> "Config":
        """A copy with single fields changed, each named without its part: `config.with_fields(num_envs=128)`.

        `reward="paper"` (or "default") sets all fields of the reward first. Lists count as tuples, and NumPy's numbers
        as Python's.

        Raises:
            ValueError: an unknown field or reward, or a value of another type.
        """
        if "reward" in values:
            name = values.pop("reward")
            if name not in REWARDS:
                raise ValueError(f"reward: expected one of {', '.join(REWARDS)}, got {name!r}")
            return dataclasses.replace(self, reward=REWARDS[name]).with_fields(**values)
        parts = {}
        for part, settings in PARTS.items():
            known = {f.name for f in dataclasses.fields(settings)}
            changes = {name: _plain(values.pop(name)) for name in list(values) if name in known}
            check_fields(settings, changes, "config")
            parts[part] = dataclasses.replace(getattr(self, part), **changes)
        if values:
            name = next(iter(values))
            raise ValueError(f"config: expected a field that exists, got {name!r}; type: nil-jax train --help")
        return Config(**parts)


PARTS = {
    "train": TrainConfig,
    "env": EnvConfig,
    "reference": ReferenceConfig,
    "imitation": ImitationConfig,
    "reward": RewardConfig,
    "learner": LearnerConfig,
}

# When a run goes on.
MAY_CHANGE = ("num_timesteps", "num_evals", "actor_lr", "critic_lr", "alpha_lr", "lr_decay", "max_grad_norm")

REWARDS = {"default": RewardConfig(), "paper": RewardConfig.paper()}

PRESETS: dict[str, dict[str, Any]] = {
    "cpu": {},
    "gpu": {
        "num_envs": 2048,
        "num_timesteps": 50_000_000,
        "batch_size": 4096,
        "learning_starts": 50_000,
        "checkpoint_replay": False,
        "mass_spread": 0.1,
        "friction_spread": 0.3,
        "gain_spread": 0.1,
        "latency": 0.02,
    },
    # NIL as published (arXiv 2503.10626) with BRO's settings (arXiv 2405.16158), to compare with: torques and a look at
    # 100 Hz, no motion of the clip. What is not published (weights within the regularisers, episode length) is ours.
    "paper": {
        "reward": "paper",
        "encoder": "facebook/timesformer-base-finetuned-k400",
        "ctrl_dt": 0.01,
        "sim_dt": 0.0025,
        "actuation": "torque",
        "fps": 100.0,
        "track": False,
        "starts": "rest",
        "targets": "stand",
        "lost_pose": 0.0,
        "num_envs": 1,
        "actor_hidden": (256, 256, 256),
        "critic_hidden": (512, 512, 512),
        "critic": "distributional",
        "num_quantiles": 100,
        "pessimism": 0.0,
        "policy_delay": 1,
        "actor_average": 1.0,
        "batch_size": 128,
        "grad_updates_per_step": 10,
        "gamma": 0.99,
        "tau": 0.005,
        "weight_decay": 1e-4,
        "lr_decay": 0.0,
        "target_entropy_scale": 0.5,
        "init_temperature": 1.0,
    },
}


def preset(name: str) -> Config:
    """The settings of a preset: "cpu" (two cores), "gpu" (one accelerator) or "paper" (as published).

    Raises:
        ValueError: an unknown preset.
    """
    if name not in PRESETS:
        raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {name!r}")
    return Config().with_fields(**PRESETS[name])


def flatten(config: Config) -> dict[str, Any]:
    """All fields by name, without their parts."""
    return {name: value for part in dataclasses.asdict(config).values() for name, value in part.items()}


def save_config(config: Config, path: Path) -> None:
    """Writes the settings as JSON, in one piece."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")
    os.replace(new, path)


def _plain(value: Any) -> Any:
    """A value as the fields hold it: no field is a list, and JSON has no tuples and none of NumPy's numbers."""
    if isinstance(value, np.generic):
        return value.item()
    return tuple(value) if isinstance(value, list) else value


def load_config(path: Path) -> Config:
    """Reads what `save_config` wrote.

    Raises:
        ValueError: not JSON, or fields that do not exist or do not fit.
    """
    try:
        raw = read_json(path, "config")
        parts = {}
        for part, settings in PARTS.items():
            fields = {name: _plain(value) for name, value in raw[part].items()}
            check_fields(settings, fields, "config")
            parts[part] = settings(**fields)
        return Config(**parts)
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"config: expected the settings of a run in {path}, got {one_line(error)}") from None


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Fields in which two settings differ: name -> (old, new)."""
    before, after = flatten(old), flatten(new)
    return {name: (before[name], after[name]) for name in before if before[name] != after[name]}
