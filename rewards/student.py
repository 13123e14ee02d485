"""The student: a small TimeSformer-shaped encoder that reads each frame once, and clips from what it kept of frames.

Its embedding has two parts, side by side: where the body is at each frame, so that the Euclidean distance of two clips
is about the distance of their poses in robot sizes; and a teacher's calibrated embedding.

Axes: B clips, T frames, H W image, F features of a frame, P numbers of a pose, E of the teacher's embedding.
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Shaped

from nil_jax.files import check_fields
from nil_jax.rewards.similarity import safe_norm
from nil_jax.rewards.timesformer import (
    LARGEST,
    MOST_FRAMES,
    Block,
    Timesformer,
    TimesformerConfig,
    layer_norm,
    preprocess,
)

MODEL_TYPE = "nil_jax_student"  # in config.json
CONFIG, WEIGHTS = "config.json", "model.safetensors"
PATCH_FEATURES = 16  # of each patch, from which a frame's features are made: where things are must not be averaged away


@dataclass(frozen=True)
class StudentConfig:
    """Sizes of the student; the defaults cost less than 20 MFLOP a clip whose other frames were read before.

    Raises:
        ValueError: sizes that do not fit together.
    """

    image_size: int = 64  # px
    patch_size: int = 8  # px
    hidden_size: int = 64  # of a patch
    num_layers: int = 2
    num_heads: int = 4
    frame_size: int = 96  # F
    num_frames: int = 8  # T
    pose_size: int = 16  # P
    teacher_size: int = 32  # E
    teacher_weight: float = 0.0  # of the teacher's part in the embedding, robot sizes; it has unit length before
    scale: float = 0.15  # robot sizes: distance at which the similarity is 1/e

    def __post_init__(self):
        _ = self.space, self.time  # whose own checks speak
        for name, most in (("pose_size", LARGEST), ("teacher_size", LARGEST), ("num_frames", MOST_FRAMES)):
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"{name}: expected a whole number from 1 to {most}, got {getattr(self, name)}")
        if not (self.teacher_weight >= 0 and self.scale > 0):
            raise ValueError(f"scale, teacher_weight: expected > 0 and >= 0, got {self.scale}, {self.teacher_weight}")

    @property
    def space(self) -> TimesformerConfig:
        """What reads one frame; white, the background, is zero."""
        return TimesformerConfig(
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            intermediate_size=4 * self.hidden_size,
            image_size=self.image_size,
            patch_size=self.patch_size,
            num_frames=1,
            attention_type="space_only",
            image_mean=(1.0, 1.0, 1.0),
            image_std=(0.5, 0.5, 0.5),
        )

    @property
    def time(self) -> TimesformerConfig:
        """What reads the features of a clip's frames."""
        return TimesformerConfig(
            hidden_size=self.frame_size,
            num_hidden_layers=1,
            num_attention_heads=self.num_heads,
            intermediate_size=4 * self.frame_size,
            attention_type="joint_space_time",
        )

    @property
    def embedding_size(self) -> int:
        """Numbers of an embedding: the poses of all frames, then the teacher's part."""
        return self.num_frames * self.pose_size + self.teacher_size


class FrameNetwork(nn.Module):
    """Normalised pixels to the features of a frame."""

    config: StudentConfig

    @nn.compact
    def __call__(self, pixels: Float[Array, "n h w 3"]) -> Float[Array, "n f"]:
        """All patches, with attention among them, side by side."""
        tokens = Timesformer(self.config.space, name="space")(pixels[:, None])[:, 1:]
        patches = nn.Dense(PATCH_FEATURES, name="patches")(tokens)
        return nn.Dense(self.config.frame_size, name="frame")(nn.gelu(patches.reshape(len(patches), -1)))


class ClipNetwork(nn.Module):
    """Features of T frames to the two parts of the embedding."""

    config: StudentConfig

    @nn.compact
    def __call__(self, features: Float[Array, "b t f"]) -> tuple[Float[Array, "b t p"], Float[Array, "b e"]]:
        """Poses in robot sizes, and the teacher's part with unit length."""
        config = self.config
        times = self.param("time_embeddings", nn.initializers.normal(0.02), (config.num_frames, config.frame_size))
        tokens, _ = Block(config.time, jnp.float32, config.num_frames, name="block")(features + times, None)
        tokens = layer_norm(config.time, jnp.float32, "norm")(tokens)
        pose = nn.Dense(config.pose_size, name="pose")(tokens)
        teacher = nn.Dense(config.teacher_size, name="teacher")(tokens.reshape(len(tokens), -1))
        return pose, teacher / jnp.maximum(safe_norm(teacher), 1e-6)[:, None]


class Student(nn.Module):
    """Both networks; `read` and `join` are called apart where clips overlap."""

    config: StudentConfig

    def setup(self):
        """Names the parts in the parameters."""
        self.frames = FrameNetwork(self.config)
        self.clips = ClipNetwork(self.config)

    def __call__(self, frames: Shaped[Array, "b t h w 3"]) -> tuple[Float[Array, "b t p"], Float[Array, "b e"]]:
        """The two parts of the embeddings of clips of uint8 frames."""
        return self.clips(self.read(frames))

    def read(self, frames: Shaped[Array, "*batch h w 3"]) -> Float[Array, "*batch f"]:
        """Features of uint8 frames, one by one."""
        pixels = preprocess(frames.reshape(-1, *frames.shape[-3:]), self.config.space)
        return self.frames(pixels).reshape(*frames.shape[:-3], -1)

    def join(self, features: Float[Array, "*batch t f"]) -> Float[Array, "*batch d"]:
        """Embeddings of clips from the features of their frames.

        |z - z'|^2 = mean over T of |p_t - p'_t|^2 + w^2 |e - e'|^2
        """
        pose, teacher = self.clips(features.reshape(-1, *features.shape[-2:]))
        pose = pose.reshape(len(pose), -1) / np.sqrt(self.config.num_frames)
        z = jnp.concatenate([pose, self.config.teacher_weight * teacher], axis=-1)
        return z.reshape(*features.shape[:-2], -1)


def save_student(folder: Path, config: StudentConfig, params: Any, provenance: dict[str, Any]) -> None:
    """Writes config.json and model.safetensors (float16, which loses nothing that is seen in the rewards)."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: np.asarray(value, np.float16) for name, value in flatten_dict(params, sep="/").items()}
    save_file(tensors, folder / WEIGHTS)
    settings = {"model_type": MODEL_TYPE, **asdict(config), "provenance": provenance}
    (folder / CONFIG).write_text(json.dumps(settings, indent=2) + "\n")


def student_config(settings: dict[str, Any]) -> StudentConfig:
    """From the contents of config.json.

    Raises:
        ValueError: values that are missing or do not fit.
    """
    try:
        values = {f.name: settings[f.name] for f in fields(StudentConfig)}
        check_fields(StudentConfig, values, "encoder")
        return StudentConfig(**values)
    except (KeyError, TypeError) as error:
        raise ValueError(f"encoder: expected all settings of a student in {CONFIG}, got {error!r}") from None


def fingerprints(settings: dict[str, Any]) -> list[str]:
    """Of the robots that a student was taught on, from the contents of config.json."""
    try:
        return [str(fingerprint) for fingerprint in settings["provenance"]["robots"].values()]
    except (KeyError, TypeError, AttributeError):
        return []


def student_shapes(config: StudentConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a student."""
    import jax

    clip = jax.ShapeDtypeStruct((1, config.num_frames, config.image_size, config.image_size, 3), jnp.uint8)
    shapes = jax.eval_shape(Student(config).init, jax.random.key(0), clip)["params"]
    return {name: leaf.shape for name, leaf in flatten_dict(shapes, sep="/").items()}


def params_of(tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """Parameters from named tensors."""
    # Converted by NumPy: JAX would compile a conversion for every shape.
    arrays = {name: jnp.asarray(np.asarray(value, np.float32)) for name, value in tensors.items()}
    return unflatten_dict(arrays, sep="/")
