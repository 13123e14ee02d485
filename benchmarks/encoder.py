"""Clips a second of the encoders: TimeSformer-B beside transformers' PyTorch, I3D, and the student.

    python benchmarks/encoder.py [--quick | --full] [--json FILE]

TimeSformer's weights are noise: speed does not depend on them. PyTorch is the peer in the same run and precision, where
it has the same kind of device; on a CPU with a thread for each core. Operations: two for each multiplication and
addition of products and convolutions; beside those of a large matrix product in the same precision, and on a known GPU
beside half of its data sheet. Memory: what XLA sets aside for activations.
"""

import json
import math
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import common
import jax
import jax.numpy as jnp
import numpy as np

from nil_jax.rewards import Encoder, load_encoder
from nil_jax.rewards.timesformer import TimesformerConfig, tensor_shapes

BATCHES = {"cpu": {"quick": (1,), "full": (1, 4)}, "gpu": {"quick": (64,), "full": (16, 64, 256)}}  # clips at once
SIDE = {"cpu": 2048, "gpu": 16384}  # of the matrices that the peak is measured with
DATA_SHEET = {"NVIDIA H200": 989e12, "NVIDIA H100": 989e12, "NVIDIA A100": 312e12}  # bfloat16, dense, operations / s
FEW, MANY = 16, 256  # clips whose memory is asked for
STUDENTS = 64  # clips of a student for one of the others
REPEATS = {"quick": 3, "full": 6}  # of each network in turn


def product_flops(function: Callable, *arguments) -> float:
    """Operations of all matrix products and convolutions of a function, loops counted as often as they run."""
    return _flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def _flops(jaxpr) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel, (out, *_) = equation.invars[1].aval.shape, params["dimension_numbers"].rhs_spec
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / kernel[out]
        inner = sum(_flops(getattr(part, "jaxpr", part)) for part in jax.tree.leaves(params) if _is_jaxpr(part))
        total += inner * (params["length"] if name == "scan" else 1)
    return total


def _is_jaxpr(part: object) -> bool:
    return hasattr(part, "eqns") or hasattr(part, "jaxpr")


def random_timesformer(dtype: str) -> Encoder:
    """TimeSformer-B from a checkpoint of noise."""
    from safetensors.numpy import save_file

    rng, shapes = np.random.default_rng(0), tensor_shapes(TimesformerConfig())
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps({"model_type": "timesformer"}))
        tensors = {name: 0.02 * rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
        save_file(tensors, Path(folder) / "model.safetensors")
        return load_encoder(folder, dtype=dtype)


def torch_timesformer(dtype: str) -> Callable | None:
    """The same network by transformers, from uint8 clips to the class token; None without a device of this kind."""
    try:
        import torch
        import transformers
    except ImportError:
        return None
    device = "cpu" if kind() == "cpu" else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        return None
    torch.set_num_threads(os.cpu_count() or 1)
    precision = getattr(torch, dtype)
    network = transformers.TimesformerModel(transformers.TimesformerConfig()).eval().to(device, precision)

    @torch.inference_mode()
    def embed(frames: torch.Tensor) -> np.ndarray:
        pixels = frames.permute(0, 1, 4, 2, 3).to(precision) / 127.5 - 1.0
        return network(pixels).last_hidden_state[:, 0].float().cpu().numpy()

    # Frames are on the device before the clock starts, as ours are.
    return lambda frames: partial(embed, torch.from_numpy(frames).to(device))


def kind() -> str:
    """Sizes for a CPU or for an accelerator."""
    return "cpu" if jax.default_backend() == "cpu" else "gpu"


def noise(encoder: Encoder, number: int) -> np.ndarray:
    """Clips [number, T, S, S, 3]."""
    shape = (number, encoder.num_frames, encoder.image_size, encoder.image_size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def in_turn(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Seconds of the fastest call of each; they take turns, so that a busy machine is busy for all of them."""
    best = dict.fromkeys(functions, math.inf)
    for _ in range(repeats + 1):  # the first compiles
        for name, function in functions.items():
            started = time.perf_counter()
            jax.block_until_ready(function())
            best[name] = min(best[name], time.perf_counter() - started)
    return best


def timesformer_rows(size: str, dtype: str) -> list[dict]:
    """Speed and memory of TimeSformer-B in one precision."""
    encoder, peer, rows = random_timesformer(dtype), torch_timesformer(dtype), []
    embed, matrix = jax.jit(encoder.embed), jnp.ones((SIDE[kind()], SIDE[kind()]), dtype)
    possible = 2.0 * len(matrix) ** 3 / common.best_seconds(jax.jit(jnp.matmul), matrix, matrix)
    sheet = next((rate for name, rate in DATA_SHEET.items() if name in jax.devices()[0].device_kind), None)
    flops = product_flops(encoder.embed, encoder.params, noise(encoder, 1))
    for batch in BATCHES[kind()][size]:
        frames, name = noise(encoder, batch), f"TimeSformer-B, {dtype}, {batch} at once"
        calls: dict = {"ours": partial(embed, encoder.params, jnp.asarray(frames))}
        if peer is not None:
            calls["PyTorch"] = peer(frames)
        rates = {who: batch / seconds for who, seconds in in_turn(calls, REPEATS[size]).items()}
        theirs = ("PyTorch", rates["PyTorch"]) if peer is not None else ()
        rows.append(common.row(name, rates["ours"], "clips/s", *theirs))
        rows.append(common.row(f"{name}: operations", flops * rates["ours"], "1/s", "matrix product", possible))
        if sheet is not None and dtype == "bfloat16":
            row = common.row(f"{name}: operations", flops * rates["ours"], "1/s", "half of the data sheet", sheet / 2)
            rows.append(row)
    for number in (FEW, MANY):
        shape = jax.ShapeDtypeStruct((number, *noise(encoder, 1).shape[1:]), jnp.uint8)
        memory = embed.lower(encoder.params, shape).compile().memory_analysis().temp_size_in_bytes
        rows.append(common.row(f"TimeSformer-B, {dtype}: activations of {number} clips", memory / 2**20, "MiB"))
    return rows


def tick_rows(name: str, size: str) -> list[dict]:
    """Speed and operations of clips of which all frames but the last were read before."""
    encoder = load_encoder(name)
    batch = BATCHES[kind()][size][-1] * (STUDENTS if name == "student" else 1)
    frames = jnp.asarray(noise(encoder, 1)).repeat(batch, axis=0)

    @jax.jit
    def tick(params, kept, frame):
        now = encoder._replace(params=params)
        return now.embed_kept(jnp.concatenate([kept[:, 1:], now.kept(frame)[:, None]], axis=1))

    arguments = encoder.params, encoder.kept(frames), frames[:, -1]
    seconds = in_turn({name: partial(tick, *arguments)}, REPEATS[size])[name]
    large = random_timesformer("float32")
    flops = product_flops(large.embed, large.params, noise(large, 1))
    peer = ("TimeSformer-B", flops / 1e6)
    return [
        common.row(f"{name}, {batch} at once", batch / seconds, "clips/s"),
        common.row(
            f"{name}: operations of a clip",
            product_flops(tick, *arguments) / batch / 1e6,
            "million",
            *peer,
            higher_is_better=False,
        ),
    ]


def main() -> None:
    """Prints the rows."""
    options = common.parser(__doc__.splitlines()[0]).parse_args()
    size = "full" if options.full else "quick"
    rows = [row for dtype in ("float32", "bfloat16") for row in timesformer_rows(size, dtype)]
    rows += [row for name in ("i3d", "student") for row in tick_rows(name, size)]
    common.write(rows, options.json)


if __name__ == "__main__":
    common.run(main)
