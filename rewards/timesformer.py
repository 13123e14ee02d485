"""TimeSformer (arXiv 2102.05095), inference only, equal to transformers' PyTorch `TimesformerModel`.

Axes: B clips, T frames, H W C image, P patches of a frame, S tokens of a sequence, D hidden size, L layers.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from nil_jax.files import check_fields
from nil_jax.rewards.pixels import square_pixels

ACTIVATIONS = {
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_new": nn.gelu,
    "gelu_fast": nn.gelu,
    "gelu_pytorch_tanh": nn.gelu,
    "relu": nn.relu,
    "silu": nn.silu,
}
# A file that says more would take all memory before it is found wrong.
LARGEST, MOST_FRAMES, LARGEST_IMAGE = 2**16, 256, 1024
ATTENTION_TYPES = ("divided_space_time", "joint_space_time", "space_only")


@dataclass(frozen=True)
class TimesformerConfig:
    """Architecture and preprocessing, under Hugging Face's names; the defaults are the published base model.

    Raises:
        ValueError: a value that no TimeSformer has.
    """

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    image_size: int = 224  # px, square
    patch_size: int = 16  # px, square
    num_channels: int = 3
    num_frames: int = 8
    attention_type: str = "divided_space_time"
    qkv_bias: bool = True
    layer_norm_eps: float = 1e-6
    hidden_act: str = "gelu"
    # The processor of facebook/timesformer-base-finetuned-k400.
    rescale_factor: float = 1 / 255
    image_mean: tuple[float, ...] = (0.45, 0.45, 0.45)
    image_std: tuple[float, ...] = (0.225, 0.225, 0.225)

    def __post_init__(self):
        if self.attention_type not in ATTENTION_TYPES:
            raise ValueError(f"attention_type: expected one of {ATTENTION_TYPES}, got {self.attention_type!r}")
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act: expected one of {tuple(ACTIVATIONS)}, got {self.hidden_act!r}")
        sizes = dict.fromkeys(("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"), LARGEST)
        for name, most in (sizes | {"num_frames": MOST_FRAMES, "image_size": LARGEST_IMAGE}).items():
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"{name}: expected a whole number from 1 to {most}, got {getattr(self, name)}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size: expected a multiple of num_attention_heads = {self.num_attention_heads}, "
                f"got {self.hidden_size}"
            )
        if self.patch_size < 1 or self.image_size % self.patch_size:
            raise ValueError(
                f"image_size: expected a multiple of patch_size = {self.patch_size}, got {self.image_size}"
            )
        if not self.num_channels == len(self.image_mean) == len(self.image_std) == 3:
            raise ValueError(
                f"num_channels: expected 3 with a mean and a deviation each, got {self.num_channels}, "
                f"image_mean {self.image_mean}, image_std {self.image_std}"
            )

    @property
    def num_patches(self) -> int:
        """Patches of one frame."""
        return (self.image_size // self.patch_size) ** 2

    @classmethod
    def from_hf(cls, config: Mapping, preprocessor: Mapping | None = None) -> "TimesformerConfig":
        """From the contents of `config.json` and, where there is one, `preprocessor_config.json`.

        Raises:
            ValueError: another architecture, or a value that is not supported.
        """
        if config.get("model_type") != "timesformer":
            raise ValueError(
                f"model_type: expected a checkpoint of 'timesformer', got {config.get('model_type')!r} "
                f"(architectures {config.get('architectures')}); try facebook/timesformer-base-finetuned-k400"
            )
        known = {f.name for f in fields(cls)}
        values = {name: value for name, value in config.items() if name in known}
        for name in ("image_size", "patch_size"):
            sides = values.get(name)
            if isinstance(sides, list | tuple):
                sides = list(sides)
                if not 1 <= len(sides) <= 3 or any(side != sides[0] for side in sides):
                    raise ValueError(f"{name}: expected a square, got {sides}")
                values[name] = sides[0]
        preprocessor = preprocessor or {}
        if not preprocessor.get("do_rescale", True):
            values["rescale_factor"] = 1.0
        elif "rescale_factor" in preprocessor:
            values["rescale_factor"] = preprocessor["rescale_factor"]
        if not preprocessor.get("do_normalize", True):
            values["image_mean"], values["image_std"] = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        else:
            for name in ("image_mean", "image_std"):
                if name in preprocessor:
                    values[name] = preprocessor[name]
        for name in ("image_mean", "image_std"):
            values[name] = tuple(values[name]) if isinstance(values.get(name), list) else values.get(name)
        values = {name: value for name, value in values.items() if value is not None}
        check_fields(cls, values, "encoder")
        return cls(**values)


def preprocess(frames: Shaped[Array, "*batch h w c"], config: TimesformerConfig) -> Float[Array, "*batch s s 3"]:
    """Pixels as the network wants them: resized with an antialiased triangle filter, rescaled and normalised.

    Args:
        frames: uint8 RGB, square, of any size.
        config: says the size and the constants.

    Raises:
        TypeError: frames that are not uint8.
        ValueError: frames that are not square RGB: a crop would hide a part of the robot, so the caller decides.
    """
    pixels = square_pixels(frames, config.image_size)
    scale = config.rescale_factor / np.asarray(config.image_std, np.float32)
    shift = np.asarray(config.image_mean, np.float32) / np.asarray(config.image_std, np.float32)
    shape = (1,) * (frames.ndim - 1) + (3,)
    return pixels * scale.astype(np.float32).reshape(shape) - shift.reshape(shape)


class Attention(nn.Module):
    """Multi-head self-attention over the last axis but one of [.., S, D]."""

    config: TimesformerConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "*batch s d"]) -> Float[Array, "*batch s d"]:
        """Attend; without the residual and the norm before it."""
        size, heads = self.config.hidden_size, self.config.num_attention_heads
        qkv = nn.Dense(3 * size, self.config.qkv_bias, self.dtype, self.dtype, name="qkv")(x)
        query, key, value = jnp.moveaxis(qkv.reshape(-1, x.shape[-2], 3, heads, size // heads), 2, 0)
        attended = jax.nn.dot_product_attention(query, key, value)
        return nn.Dense(size, True, self.dtype, self.dtype, name="out")(attended.reshape(x.shape))


class Block(nn.Module):
    """One encoder layer on tokens [B, 1 + T * P, D], frames outermost; written as the body of a scan over layers."""

    config: TimesformerConfig
    dtype: Any
    num_frames: int

    @nn.compact
    def __call__(self, tokens: Float[Array, "b s d"], _: None) -> tuple[Float[Array, "b s d"], None]:
        """Attention and MLP with their residuals."""
        if self.config.attention_type == "divided_space_time":
            tokens = self._divided(tokens)
        else:
            tokens = tokens + self._attention("spatial", tokens)
        config = self.config
        hidden = nn.Dense(config.intermediate_size, True, self.dtype, self.dtype, name="mlp_in")(
            layer_norm(config, self.dtype, "norm_mlp")(tokens)
        )
        hidden = ACTIVATIONS[config.hidden_act](hidden)
        return tokens + nn.Dense(config.hidden_size, True, self.dtype, self.dtype, name="mlp_out")(hidden), None

    def _attention(self, name: str, x: Float[Array, "*batch s d"]) -> Float[Array, "*batch s d"]:
        return Attention(self.config, self.dtype, name=name)(layer_norm(self.config, self.dtype, f"norm_{name}")(x))

    def _divided(self, tokens: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        cls = tokens[:, :1]
        x = tokens[:, 1:].reshape(len(tokens), self.num_frames, -1, tokens.shape[-1])  # [B, T, P, D]
        x = x + self._attention("temporal", x.swapaxes(1, 2)).swapaxes(1, 2)
        # Every frame sees its own copy of the class token; what the copies learn is averaged.
        copies = jnp.broadcast_to(cls[:, None], (*x.shape[:2], 1, x.shape[-1]))
        update = self._attention("spatial", jnp.concatenate([copies, x], axis=2))
        cls = cls + jnp.mean(update[:, :, :1], axis=1)
        x = x + update[:, :, 1:]
        return jnp.concatenate([cls, x.reshape(len(tokens), -1, x.shape[-1])], axis=1)


class Timesformer(nn.Module):
    """Normalised pixels to the last hidden state; parameters come from `params_from_tensors`."""

    config: TimesformerConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, pixels: Float[Array, "b t h w c"]) -> Float[Array, "n s d"]:
        """Tokens in PyTorch's order: [B, 1 + P * T, D] with frames innermost; [B * T, 1 + P, D] if `space_only`."""
        config = self.config
        batch, frames = pixels.shape[:2]
        size, side = config.patch_size, config.image_size // config.patch_size
        expected = (config.num_frames, config.image_size, config.image_size, config.num_channels)
        if pixels.shape[1:] != expected:
            raise ValueError(f"pixels: expected clips [B, T, H, W, C] with {expected} after B, got {pixels.shape}")
        patches = pixels.astype(self.dtype).reshape(batch, frames, side, size, side, size, -1)
        patches = patches.swapaxes(3, 4).reshape(batch, frames, config.num_patches, -1)
        x = nn.Dense(config.hidden_size, True, self.dtype, self.dtype, name="patch")(patches)

        def table(name: str, rows: int) -> Array:
            return self.param(name, nn.initializers.zeros, (rows, config.hidden_size), self.dtype)

        position = table("position_embeddings", 1 + config.num_patches)
        cls = table("cls_token", 1) + position[:1]
        x = x + position[None, None, 1:]
        if config.attention_type == "space_only":
            x, frames = x.reshape(batch * frames, 1, *x.shape[2:]), 1
        else:
            x = x + table("time_embeddings", frames)[None, :, None]
        cls = jnp.broadcast_to(cls[None], (len(x), *cls.shape))
        tokens = jnp.concatenate([cls, x.reshape(len(x), -1, x.shape[-1])], axis=1)

        # One compiled body for all layers: compile time does not grow with depth.
        scan = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=config.num_hidden_layers)
        tokens, _ = scan(config, self.dtype, frames, name="blocks")(tokens, None)
        tokens = layer_norm(config, self.dtype, "norm")(tokens)
        x = tokens[:, 1:].reshape(len(tokens), frames, -1, tokens.shape[-1]).swapaxes(1, 2)
        return jnp.concatenate([tokens[:, :1], x.reshape(len(tokens), -1, tokens.shape[-1])], axis=1)


def layer_norm(config: TimesformerConfig, dtype: Any, name: str) -> nn.LayerNorm:
    """The layer norm of this network; the two-pass variance keeps float32 exact where a channel has a large mean."""
    return nn.LayerNorm(config.layer_norm_eps, dtype, dtype, use_fast_variance=False, name=name)


def tensor_shapes(config: TimesformerConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a Hugging Face checkpoint of `TimesformerModel`."""
    size, wide, patch = config.hidden_size, config.intermediate_size, config.patch_size
    shapes = {
        "embeddings.cls_token": (1, 1, size),
        "embeddings.position_embeddings": (1, 1 + config.num_patches, size),
        "embeddings.patch_embeddings.projection.weight": (size, config.num_channels, patch, patch),
        "embeddings.patch_embeddings.projection.bias": (size,),
    }
    if config.attention_type != "space_only":
        shapes["embeddings.time_embeddings"] = (1, config.num_frames, size)
    attentions, norms, linear = ["attention"], ["layernorm_before", "layernorm_after"], {}
    if config.attention_type == "divided_space_time":
        attentions.append("temporal_attention")
        norms.append("temporal_layernorm")
        linear["temporal_dense"] = (size, size)
    for name in attentions:
        linear |= {f"{name}.attention.qkv": (3 * size, size), f"{name}.output.dense": (size, size)}
    linear |= {"intermediate.dense": (wide, size), "output.dense": (size, wide)}
    for layer in range(config.num_hidden_layers):
        for name, shape in linear.items():
            shapes[f"encoder.layer.{layer}.{name}.weight"] = shape
            if config.qkv_bias or not name.endswith("qkv"):
                shapes[f"encoder.layer.{layer}.{name}.bias"] = shape[:1]
        for name in norms:
            shapes |= {f"encoder.layer.{layer}.{name}.{part}": (size,) for part in ("weight", "bias")}
    return shapes | {f"layernorm.{part}": (size,) for part in ("weight", "bias")}


def params_from_tensors(
    tensors: Mapping[str, np.ndarray], config: TimesformerConfig, dtype: Any = jnp.float32
) -> dict[str, dict]:
    """Parameters of `Timesformer` from tensors under Hugging Face's names (without the prefix `timesformer.`).

    The two linear maps that end the temporal attention have nothing between them, so they become one: 6 % less work.
    """
    as_numpy = {name: np.asarray(tensors[name], np.float32) for name in tensor_shapes(config)}

    def linear(weight: np.ndarray, bias: np.ndarray | None) -> dict[str, np.ndarray]:
        kernel = {"kernel": np.swapaxes(weight, -1, -2)}
        return kernel if bias is None else kernel | {"bias": bias}

    def stacked(name: str) -> np.ndarray | None:
        names = [f"encoder.layer.{layer}.{name}" for layer in range(config.num_hidden_layers)]
        return np.stack([as_numpy[n] for n in names]) if names[0] in as_numpy else None

    def stacked_linear(name: str) -> dict[str, np.ndarray]:
        return linear(stacked(f"{name}.weight"), stacked(f"{name}.bias"))

    def stacked_norm(name: str) -> dict[str, np.ndarray]:
        return {"scale": stacked(f"{name}.weight"), "bias": stacked(f"{name}.bias")}

    blocks = {
        "norm_spatial": stacked_norm("layernorm_before"),
        "spatial": {"qkv": stacked_linear("attention.attention.qkv"), "out": stacked_linear("attention.output.dense")},
        "norm_mlp": stacked_norm("layernorm_after"),
        "mlp_in": stacked_linear("intermediate.dense"),
        "mlp_out": stacked_linear("output.dense"),
    }
    if config.attention_type == "divided_space_time":
        last, last_bias = stacked("temporal_dense.weight"), stacked("temporal_dense.bias")
        weight = last @ stacked("temporal_attention.output.dense.weight")
        bias = (last @ stacked("temporal_attention.output.dense.bias")[..., None])[..., 0] + last_bias
        qkv = stacked_linear("temporal_attention.attention.qkv")
        blocks["norm_temporal"] = stacked_norm("temporal_layernorm")
        blocks["temporal"] = {"qkv": qkv, "out": linear(weight, bias)}

    projection = as_numpy["embeddings.patch_embeddings.projection.weight"]  # [D, C, h, w]; our patches are h w C
    params = {
        "patch": linear(
            projection.transpose(0, 2, 3, 1).reshape(len(projection), math.prod(projection.shape[1:])),
            as_numpy["embeddings.patch_embeddings.projection.bias"],
        ),
        "cls_token": as_numpy["embeddings.cls_token"][0],
        "position_embeddings": as_numpy["embeddings.position_embeddings"][0],
        "blocks": blocks,
        "norm": {"scale": as_numpy["layernorm.weight"], "bias": as_numpy["layernorm.bias"]},
    }
    if config.attention_type != "space_only":
        params["time_embeddings"] = as_numpy["embeddings.time_embeddings"][0]
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), params)
