"""nil_jax: teach a robot a motor skill from one generated video."""

import contextlib
import importlib.metadata
import io

# Without the optional Warp, MJX says so on standard output, where commands print their JSON.
with contextlib.redirect_stdout(io.StringIO()):
    import mujoco.mjx  # noqa: F401

from nil_jax import envs, rewards
from nil_jax.config import Config, preset
from nil_jax.evaluation import evaluate, make_film
from nil_jax.learning import make_actor_critic, make_policy
from nil_jax.pretrained import Pretrained, list_pretrained, load_pretrained, save_pretrained
from nil_jax.reference import (
    Reference,
    generate_clip,
    generate_reference,
    prepare_reference,
    read_video,
    with_embeddings,
)
from nil_jax.rewards import load_encoder
from nil_jax.rollout import ImitationEnv
from nil_jax.training import TrainingResult, train, train_seeds
from nil_jax.types import Transition

__version__ = importlib.metadata.version("nil-jax")

__all__ = [
    "Config",
    "ImitationEnv",
    "Pretrained",
    "Reference",
    "TrainingResult",
    "Transition",
    "envs",
    "evaluate",
    "generate_clip",
    "generate_reference",
    "list_pretrained",
    "load_encoder",
    "load_pretrained",
    "make_actor_critic",
    "make_film",
    "make_policy",
    "prepare_reference",
    "preset",
    "read_video",
    "rewards",
    "save_pretrained",
    "train",
    "train_seeds",
    "with_embeddings",
]
