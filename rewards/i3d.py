"""I3D on RGB (Inception-v1 with its kernels inflated into time), for inference, in Flax; weights: `i3d_weights`.

Source: Carreira and Zisserman, "Quo Vadis, Action Recognition?", arXiv 1705.07750.

Axes: B clips, T time, H W image, C channels, G G cells of a grid, D embedding.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from nil_jax.rewards.pixels import square_pixels

IMAGE_SIZE = 224  # px; what it was trained on
NUM_FRAMES = 8  # of a clip unless the caller says otherwise; it was trained on 64
LAYER = "Mixed_5c"  # the last one before the classifier
GRIDS = {"mean": 1, "grid2": 2, "grid3": 3}  # pooling -> G
NUM_CLASSES = 400
EPSILON = 1e-3  # of the batch norm that the weights were trained with


class Unit(NamedTuple):
    """A convolution, and the rectifier behind it."""

    channels: int
    size: int = 1  # of the kernel, the same in time and space
    stride: int = 1


class Pool(NamedTuple):
    """A maximum over time, height and width."""

    window: tuple[int, int, int]
    strides: tuple[int, int, int]


class Mixed(NamedTuple):
    """Four branches side by side: 1x1x1; 1x1x1 and 3x3x3, twice; maximum and 1x1x1."""

    channels: tuple[int, int, int, int, int, int]  # of `MIXED_UNITS`

    def units(self, channels: int) -> dict[str, tuple[Unit, int]]:
        """Each convolution by name, with the channels that it reads."""
        sources = (channels, channels, self.channels[1], channels, self.channels[3], channels)
        return {
            name: (Unit(out, size), source)
            for (name, size), out, source in zip(MIXED_UNITS.items(), self.channels, sources, strict=True)
        }

    @property
    def out(self) -> int:
        """Channels of the result."""
        point, _, first, _, second, pooled = self.channels
        return point + first + second + pooled


MIXED_UNITS = {  # name in the checkpoint -> size of the kernel
    "Branch_0/Conv3d_0a_1x1": 1,
    "Branch_1/Conv3d_0a_1x1": 1,
    "Branch_1/Conv3d_0b_3x3": 3,
    "Branch_2/Conv3d_0a_1x1": 1,
    "Branch_2/Conv3d_0b_3x3": 3,
    "Branch_3/Conv3d_0b_1x1": 1,
}
LAYERS: dict[str, Unit | Pool | Mixed] = {
    "Conv3d_1a_7x7": Unit(64, size=7, stride=2),
    "MaxPool3d_2a_3x3": Pool((1, 3, 3), (1, 2, 2)),
    "Conv3d_2b_1x1": Unit(64),
    "Conv3d_2c_3x3": Unit(192, size=3),
    "MaxPool3d_3a_3x3": Pool((1, 3, 3), (1, 2, 2)),
    "Mixed_3b": Mixed((64, 96, 128, 16, 32, 32)),
    "Mixed_3c": Mixed((128, 128, 192, 32, 96, 64)),
    "MaxPool3d_4a_3x3": Pool((3, 3, 3), (2, 2, 2)),
    "Mixed_4b": Mixed((192, 96, 208, 16, 48, 64)),
    "Mixed_4c": Mixed((160, 112, 224, 24, 64, 64)),
    "Mixed_4d": Mixed((128, 128, 256, 24, 64, 64)),
    "Mixed_4e": Mixed((112, 144, 288, 32, 64, 64)),
    "Mixed_4f": Mixed((256, 160, 320, 32, 128, 128)),
    "MaxPool3d_5a_2x2": Pool((2, 2, 2), (2, 2, 2)),
    "Mixed_5b": Mixed((256, 160, 320, 32, 128, 128)),
    "Mixed_5c": Mixed((384, 192, 384, 48, 128, 128)),
}
STEM = "Conv3d_1a_7x7"
CLASSIFIER = "Logits/Conv3d_0c_1x1"


def _convolve(x: Array, unit: Unit, dtype: Any, name: str) -> Array:
    """Convolution and rectifier; "SAME" as in TensorFlow, which pads a stride of 2 more behind than before."""
    kernel, strides = (unit.size,) * 3, (unit.stride,) * 3
    return nn.relu(nn.Conv(unit.channels, kernel, strides, "SAME", dtype=dtype, param_dtype=dtype, name=name)(x))


def _convolve_pixels(x: Array, unit: Unit, dtype: Any, name: str) -> Array:
    """The first convolution, with every two columns as one of twice the channels.

    The same sums, but 1.6 times as fast on a CPU, which cannot make vectors of three channels.
    """
    pairs = x.reshape(*x.shape[:3], x.shape[3] // 2, 2 * x.shape[4])
    time_and_height = jax.lax.padtype_to_pads(x.shape[1:3], (unit.size,) * 2, (unit.stride,) * 2, "SAME")
    kernel, strides, padding = (unit.size, unit.size, (unit.size + 1) // 2), (2, 2, 1), [*time_and_height, (1, 2)]
    return nn.relu(nn.Conv(unit.channels, kernel, strides, padding, dtype=dtype, param_dtype=dtype, name=name)(pairs))


def _pair_columns(kernel: np.ndarray) -> np.ndarray:
    """The kernel of `_convolve_pixels` from the checkpoint's: [t, h, w, in, out] to [t, h, (w + 1) / 2, 2 in, out]."""
    even = np.pad(kernel, [(0, 0), (0, 0), (0, 1), (0, 0), (0, 0)])
    return even.reshape(*kernel.shape[:2], -1, 2 * kernel.shape[3], kernel.shape[4])


class MixedBlock(nn.Module):
    """One block of four branches on [B, T, H, W, C], joined along C."""

    spec: Mixed
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w d"]:
        """The branches in the order of the checkpoint."""
        pooled = nn.max_pool(x, (3, 3, 3), (1, 1, 1), "SAME")
        branches: dict[str, Array] = {}
        for name, (unit, _) in self.spec.units(x.shape[-1]).items():
            branch = name.partition("/")[0]
            source = branches.get(branch, pooled if branch == "Branch_3" else x)
            branches[branch] = _convolve(source, unit, self.dtype, name)
        return jnp.concatenate(list(branches.values()), axis=-1)


class I3d(nn.Module):
    """Pixels in [-1, 1] (W even) to the activations of one layer; parameters come from `params_from_tensors`.

    Time and image shrink by 2 at each stride, rounded up, so any number of frames will do. 8 frames are 4 after the
    first convolution, 2 in Mixed_4 (14 x 14 px) and 1 in Mixed_5 (7 x 7 px), where the outer thirds of the temporal
    kernels see only padding.
    """

    layer: str = LAYER
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, pixels: Float[Array, "b t h w 3"]) -> Float[Array, "b t2 h2 w2 c"]:
        """All layers up to the chosen one."""
        x = pixels.astype(self.dtype)
        for name, spec in LAYERS.items():
            match spec:
                case Unit() if name == STEM:
                    x = _convolve_pixels(x, spec, self.dtype, name)
                case Unit():
                    x = _convolve(x, spec, self.dtype, name)
                case Pool():
                    x = nn.max_pool(x, spec.window, spec.strides, "SAME")
                case Mixed():
                    x = MixedBlock(spec, self.dtype, name=name)(x)
            if name == self.layer:
                break
        return x


def encode(network: I3d, pooling: str, params: Any, frames: Shaped[Array, "b t h w c"]) -> Float[Array, "b d"]:
    """Embeddings of clips.

    Args:
        network: says layer and precision.
        pooling: a name of `GRIDS`.
        params: from `params_from_tensors`.
        frames: uint8 RGB, square, of any size.

    Raises:
        TypeError, ValueError: frames that are not square RGB in uint8.
    """
    pixels = square_pixels(frames, IMAGE_SIZE) / 127.5 - 1.0
    return pool(network.apply({"params": params}, pixels).astype(jnp.float32), GRIDS[pooling])


def pool(x: Float[Array, "b t h w c"], cells: int) -> Float[Array, "b d"]:
    """Averages over all times and each cell of a `cells` x `cells` grid, row by row: D = cells^2 C.

    Cell i of G spans rows floor(i H / G) to ceil((i + 1) H / G): cells overlap by a row where G does not divide H.
    """

    def averages(x: Array, axis: int) -> list[Array]:
        length = x.shape[axis]
        bounds = [(i * length // cells, -(-(i + 1) * length // cells)) for i in range(cells)]
        return [jnp.mean(jax.lax.slice_in_dim(x, *bound, axis=axis), axis=axis) for bound in bounds]

    rows = averages(jnp.mean(x, axis=1), axis=1)
    return jnp.concatenate([cell for row in rows for cell in averages(row, axis=1)], axis=-1)


def unit_shapes() -> dict[str, tuple[int, ...]]:
    """Shape of each convolution's kernel [t, h, w, in, out] but the classifier's, by name in the checkpoint."""
    shapes, channels = {}, 3
    for name, spec in LAYERS.items():
        if isinstance(spec, Unit):
            shapes[name] = (*(spec.size,) * 3, channels, spec.channels)
            channels = spec.channels
        elif isinstance(spec, Mixed):
            for part, (unit, source) in spec.units(channels).items():
                shapes[f"{name}/{part}"] = (*(unit.size,) * 3, source, unit.channels)
            channels = spec.out
    return shapes


def tensor_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a checkpoint, as `i3d_weights.read_weights` gives them."""
    shapes = {}
    for name, kernel in unit_shapes().items():
        shapes[f"params/{name}/Conv_0/kernel"] = kernel
        for tensor in (
            "params/{}/BatchNorm_0/bias",
            "batch_stats/{}/BatchNorm_0/mean",
            "batch_stats/{}/BatchNorm_0/var",
        ):
            shapes[tensor.format(name)] = kernel[-1:]
    channels = list(LAYERS.values())[-1].out
    shapes[f"params/{CLASSIFIER}/Conv_0/kernel"] = (1, 1, 1, channels, NUM_CLASSES)
    return shapes | {f"params/{CLASSIFIER}/Conv_0/bias": (NUM_CLASSES,)}


def params_from_tensors(
    tensors: Mapping[str, np.ndarray], layer: str = LAYER, dtype: Any = jnp.float32
) -> dict[str, dict]:
    """Parameters of `I3d` up to a layer; each batch norm becomes a part of the convolution before it."""
    params, names = {}, list(LAYERS)
    for name in unit_shapes():
        top, _, part = name.partition("/")
        if names.index(top) > names.index(layer):
            break
        kernel, bias = tensors[f"params/{name}/Conv_0/kernel"], tensors[f"params/{name}/BatchNorm_0/bias"]
        mean, var = (tensors[f"batch_stats/{name}/BatchNorm_0/{statistic}"] for statistic in ("mean", "var"))
        scale = 1 / np.sqrt(var.astype(np.float64) + EPSILON)
        kernel = _pair_columns(kernel * scale) if name == STEM else kernel * scale
        unit = {"kernel": jnp.asarray(kernel, dtype), "bias": jnp.asarray(bias - mean * scale, dtype)}
        if part:
            params.setdefault(top, {})[part] = unit
        else:
            params[top] = unit
    return params
