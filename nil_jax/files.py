"""Files that anyone may have made: JSON, tensors, archives; read in bounded memory, or refused in one line."""

import hashlib
import json
import math
import re
import types
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

MAX_JSON = 2**23  # bytes; parsed it takes twenty times as much
MAX_ARRAYS = 2**31  # bytes of all arrays of an archive; a reference of the longest clip has 0.3 GB
MAX_TENSORS = 2**32  # bytes of a safetensors file; the largest TimeSformer has 0.5 GB
MAX_TEXT = 2000  # characters of a line for people
MAX_INTEGER = 2**53


def one_line(error: BaseException) -> str:
    """What an error says, cut to a line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def printable(text: str) -> str:
    """A line as a terminal may have it: names in files may hold its commands, line breaks, or whole pages."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:MAX_TEXT])


def check_only_files(folder: Path, what: str) -> None:
    """Refuses a folder that holds anything but files and folders: to read a pipe may take for ever.

    Raises:
        ValueError: a pipe, socket or device in it, or a link to one.
    """
    for path in folder.rglob("*"):
        if not (path.is_file() or path.is_dir()):
            raise ValueError(f"{what}: expected files and folders in {folder}, got {path}, which is neither")


def checkpoint_folder(name: str, what: str) -> Path:
    """A folder, or that of a Hugging Face id, of which JSON files and safetensors are downloaded: no pickle.

    Args:
        name: The folder, or an id such as owner/name, with @revision behind it if wanted.
        what: First word of a refusal.

    Raises:
        ValueError: Neither, or no download.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    wanted = f"{what}: expected a folder or a Hugging Face id such as owner/name, got {name!r}"
    identifier, _, revision = name.partition("@")
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", identifier):
        raise ValueError(f"{wanted}, which is no folder")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ValueError(f"{wanted}, which needs a download; type: pip install huggingface_hub") from error
    try:
        found = snapshot_download(identifier, revision=revision or None, allow_patterns=["*.json", "*.safetensors"])
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{wanted}, which is no folder and was not found: {one_line(error)}") from None
    return Path(found)


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: The file.
        what: First word of a refusal.

    Raises:
        ValueError: No such file, too large a one, or one without a JSON object.
    """
    try:
        if not path.is_file():
            raise ValueError("no file")
        with path.open("rb") as file:
            text = file.read(MAX_JSON + 1)  # files of the system have no size, and no end
        if len(text) > MAX_JSON:
            raise ValueError(f"more than {MAX_JSON >> 20} MB")
        found = json.loads(text.decode())
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__}")
        return found
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{what}: expected a JSON object in {path}, got {one_line(error)}") from None


def read_tensors(path: Path, what: str) -> dict[str, np.ndarray]:
    """The arrays in a safetensors file, which hold finite numbers.

    Raises:
        ValueError: No such file, a damaged one, or one that is too large.
    """
    from safetensors import safe_open

    try:
        if not path.is_file() or path.stat().st_size > MAX_TENSORS:
            raise ValueError(f"no file of at most {MAX_TENSORS >> 30} GB")
        with safe_open(path, framework="numpy") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
    except Exception as error:  # the library has errors of its own, and others for data types that NumPy does not know
        raise ValueError(f"{what}: expected a safetensors file {path}, got {one_line(error)}") from None
    wrong = [name for name, value in tensors.items() if value.dtype.kind == "f" and not np.isfinite(value).all()]
    if wrong:
        raise ValueError(f"{what}: expected finite numbers in {path}, got NaN or infinity in {wrong[0]}")
    return tensors


def hash_of_tensors(tensors: Mapping[str, np.ndarray], before: str = "") -> str:
    """SHA-256 of names, types, shapes and values, behind a text that is hashed with them."""
    digest = hashlib.sha256(before.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode())
        digest.update(np.ascontiguousarray(tensors[name]).view(np.uint8).reshape(-1).data)
    return digest.hexdigest()


def read_archive(path: Path) -> dict[str, np.ndarray]:
    """The arrays in an npz, whose sizes are looked at before memory is taken for them.

    Raises:
        ValueError: Arrays that are larger than what is stored, or too large in all, or of another format.
        Exception: Any other, of a file that is no such archive.
    """
    with path.open("rb") as file:  # opened here: np.load leaves the file open where it is not a whole archive
        with zipfile.ZipFile(file) as members:
            if sum(member.file_size for member in members.infolist()) > MAX_ARRAYS:
                raise ValueError(f"expected at most {MAX_ARRAYS >> 30} GB of arrays, got more")
            for member in members.infolist():
                _check_array(members, member)
        file.seek(0)
        with np.load(file, allow_pickle=False) as archive:
            return dict(archive)


def _check_array(members: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    with members.open(member) as stream:
        if np.lib.format.read_magic(stream) != (1, 0):  # later ones have headers of up to 4 GB
            raise ValueError(f"expected the first version of NumPy's format in {member.filename}")
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        if math.prod(shape) * dtype.itemsize + stream.tell() != member.file_size:
            raise ValueError(f"expected {member.filename} to hold {shape}, got {member.file_size} bytes")


def check_fields(kind: type, values: Mapping[str, Any], what: str) -> None:
    """Checks values for the fields of a dataclass against their types.

    Raises:
        ValueError: A value of another type, or a number that is not finite.
    """
    hints = get_type_hints(kind)
    for name, value in values.items():
        if name in hints and not _fits(value, hints[name]):
            wanted = getattr(hints[name], "__name__", None) or str(hints[name])
            raise ValueError(f"{what}: expected {name} of type {wanted}, got {str(value)[:60]!r}")


def _fits(value: Any, hint: Any) -> bool:
    kind, parts = get_origin(hint), get_args(hint)
    if kind in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if kind is Literal:
        return isinstance(value, str) and value in parts
    if kind is tuple:
        return isinstance(value, tuple) and all(_fits(part, parts[0]) for part in value)
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    if hint is float:
        return isinstance(value, int | float) and abs(value) < math.inf and abs(value) <= 1e300
    if hint is int:
        return isinstance(value, int) and abs(value) <= MAX_INTEGER
    return isinstance(value, hint)
