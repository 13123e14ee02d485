"""What an MJCF may make MuJoCo read and build: looked at before MuJoCo sees the model.

A model is a file that anyone may have made. It names other files (includes, attached models, meshes, textures,
fields), which have to lie in its own folder, and sizes, which have to be those of a robot.
"""

import math
import os
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO
from xml.parsers import expat

ROOT_VARIABLE = "NIL_JAX_MODEL_ROOT"  # a folder in which files may lie too
FOLDERS = ("meshdir", "texturedir", "assetdir")
# Limits of a whole model. What is repeated, or attached, counts as often as it is there then.
MAX_XML = 64 * 2**20  # bytes of XML files; Menagerie's largest has 1 MB
MAX_ASSETS = 2**30  # bytes of meshes, textures and height fields
MAX_MEMORY = 2**30  # bytes that MuJoCo takes for what is small in the files
MAX_PARTS = 10_000  # elements; robots have some hundreds, and MuJoCo takes 10 s for as many bodies
MAX_DEPTH = 100  # levels of elements; MuJoCo reads each on the stack, and a chain of joints takes cubic time
MAX_STEPS = 10_000  # of the physics that finds an actuator's range of lengths; 1,000 by default
MAX_LOOKUPS = 100_000  # names of files times folders that may hold them
# Bytes that MuJoCo 3.17 was seen to take, with its copies.
PIXEL_BYTES = 8
FIELD_BYTES = 16  # of a cell
VERTEX_BYTES = 1500  # of a mesh that MuJoCo makes, with its convex hull
NUMBER_BYTES = 16
CHARACTER_BYTES = 8  # a number has a space behind it
KEY_BYTES = 8 * NUMBER_BYTES  # of one part in one keyframe: a mocap body has seven numbers
SUFFIXES = str.maketrans({"K": "e3", "M": "e6", "G": "e9", "T": "e12", "P": "e15", "E": "e18"})  # of <size memory>

# expat makes spaces of these, and MuJoCo does not: the names would differ.
SPLIT_NAME = re.compile(
    rb"""(?: file(?:name|right|left|up|down|front|back)? | (?:mesh|texture|asset)dir ) \s* = \s*
    (?: "[^"\n\r\t]*[\n\r\t] | '[^'\n\r\t]*[\n\r\t] )""",
    re.VERBOSE,
)
# MuJoCo looks into archives, and for a path with a colon in the working directory.
STRANGE_NAME = re.compile(r"(?:\.zip|\.mjz|:)(?:/|$)", re.IGNORECASE)
PNG = b"\x89PNG\r\n\x1a\n"
INFLATED_AT_ONCE = 2**20  # bytes


@dataclass
class _Asked:
    """What an XML file asks for, or a model with all that it includes."""

    size: int = 0  # bytes of the file
    parts: float = 0.0
    depth: int = 0  # levels
    memory: float = 0.0  # bytes
    keys: float = 0.0
    user: float = 0.0  # numbers that each part may get
    folders: set[str] = field(default_factory=lambda: {""})
    assets: list[tuple[str, float]] = field(default_factory=list)  # file, and how often
    attached: list[tuple[str, float]] = field(default_factory=list)  # name of a model, and how often
    models: list[tuple[str, str]] = field(default_factory=list)  # name, and file
    included: list[tuple[str, float, int]] = field(default_factory=list)  # file, how often, how deep

    def add(self, other: "_Asked", times: float, depth: int) -> None:
        """Adds what is there so many times, so deep."""
        self.parts += times * other.parts
        self.depth = max(self.depth, depth + other.depth)
        self.memory += times * other.memory
        self.keys += times * other.keys
        self.user = max(self.user, other.user)
        self.folders |= other.folders
        self.assets += [(name, times * count) for name, count in other.assets]
        self.attached += [(name, times * count) for name, count in other.attached]

    def check(self, file: Path) -> None:
        """Raises ValueError for more than a robot has."""
        if self.parts > MAX_PARTS or self.depth > MAX_DEPTH:
            raise ValueError(
                f"model: expected at most {MAX_PARTS} parts and {MAX_DEPTH} levels, got more in {file}; simplify it"
            )
        memory = self.memory + self.parts * (NUMBER_BYTES * self.user + KEY_BYTES * self.keys)
        if not memory <= MAX_MEMORY:
            raise ValueError(
                f"model: expected fields, textures and tables that take at most {MAX_MEMORY >> 30} GB, got "
                f"{memory / 2**30:.3g} GB in {file}; make them smaller"
            )


def check_model(path: Path) -> None:
    """Looks at a model and all that it includes and attaches.

    Raises:
        ValueError: not XML, a document type (entities could grow without end), files that are not there, or outside
            the model's folder and outside that of NIL_JAX_MODEL_ROOT, or sizes that no robot has.
    """
    allowed = [folder.resolve() for folder in (path.parent, _also_allowed()) if folder is not None]
    read: dict[Path, _Asked] = {}
    whole = _Asked()
    waiting = [(path, 1.0, 0)]
    while waiting:
        file, times, depth = waiting.pop()
        model, attached = _with_included(file, depth, read, allowed)
        whole.add(model, times, 0)
        whole.check(file)
        waiting += [(found, times * count, model.depth) for found, count in attached]
    _check_assets(whole, {file.parent for file in read}, allowed)


def _also_allowed() -> Path | None:
    chosen = os.environ.get(ROOT_VARIABLE)
    return Path(chosen).expanduser() if chosen else None


def _with_included(
    file: Path, depth: int, read: dict[Path, _Asked], allowed: list[Path]
) -> tuple[_Asked, list[tuple[Path, float]]]:
    """What a model that is so deep asks for, and the models that it attaches, each with how often."""
    model = _Asked()
    models: list[tuple[str, Path]] = []
    waiting = [(file, 1.0, depth)]
    while waiting:
        xml, times, level = waiting.pop()
        if xml not in read:
            read[xml] = _read(xml, MAX_XML - sum(other.size for other in read.values()))
        model.add(read[xml], times, level)
        model.check(xml)
        places = (file.parent, xml.parent)
        for path, count, deeper in read[xml].included:
            found = _found(places, {""}, {path}, allowed)[0]  # MuJoCo takes the first that is there
            waiting.append((found, times * count, level + deeper))
        for name, path in read[xml].models:
            models += [(name, found) for found in set(_found(places, {""}, {path}, allowed))]

    def times_attached(name: str) -> float:
        # Without a name here, the model has that of its own file, which any attachment may mean.
        return max(1.0, sum(count for other, count in model.attached if name in ("", other)))

    return model, [(found, times_attached(name)) for name, found in models]


def _check_assets(whole: _Asked, places: set[Path], allowed: list[Path]) -> None:
    """Raises ValueError for meshes, textures and fields that lie elsewhere or are too large."""
    if len(whole.assets) * len(places) * len(whole.folders) > MAX_LOOKUPS:
        raise ValueError(f"model: expected fewer files and folders, got {len(whole.assets)} files; put them together")
    size = 0.0
    for name, times in whole.assets:
        # With strippath MuJoCo takes only the last part.
        for file in {file.resolve() for file in _found(places, whole.folders, {name, name.split("/")[-1]}, allowed)}:
            size += times * file.stat().st_size
            if size > MAX_ASSETS or not file.is_file():
                raise ValueError(f"model: expected files of at most {MAX_ASSETS >> 30} GB in all, got {file} too")
            whole.memory += times * _png_bytes(file)
            whole.check(file)


def _found(places: Iterable[Path], folders: set[str], names: set[str], allowed: list[Path]) -> list[Path]:
    """Files that the names may mean, in any of the folders; one that is there has to be in an allowed folder."""
    found = []
    for written in (place / folder / name for place in places for folder in folders for name in names):
        # MuJoCo takes "a/.." out of a path, whether or not there is a folder `a`.
        for file in (Path(os.path.normpath(written)), written):
            if not os.path.exists(file):
                continue
            if not any(file.resolve().is_relative_to(root) for root in allowed):
                raise ValueError(
                    f"model: expected files inside {allowed[0]}, got {file.resolve()}; move it there, or allow a "
                    f"folder that holds both with {ROOT_VARIABLE}=FOLDER"
                )
            found.append(file)
    if not found:
        raise ValueError(f"model: expected a file {max(names, key=len)[:80]!r} in {allowed[0]}, got none; put it there")
    return found


def _png_bytes(file: Path) -> float:
    """Bytes that the pixels of a PNG take; 0 for another file.

    Raises:
        ValueError: it is damaged, or holds more than the pixels that its header tells.
    """
    with file.open("rb") as stream:
        if stream.read(len(PNG)) != PNG:
            return 0.0
        width, height = struct.unpack(">8xII", stream.read(16).ljust(16, b"\0"))
        taken = PIXEL_BYTES * (width + 1.0) * (height + 1.0)  # more than the pixels and the filter byte of each row
        if taken > MAX_MEMORY:
            return taken
        stream.seek(len(PNG))
        stored = 0
        for count in _inflated(stream):
            stored += count
            if stored > taken:
                raise ValueError(f"model: expected {width} x {height} pixels in {file}, got more; save it anew")
    return taken


def _inflated(stream: BinaryIO) -> Iterator[int]:
    """Bytes that come out of the image data of a PNG, piece by piece."""
    inflater = zlib.decompressobj()
    while len(head := stream.read(8)) == 8 and not inflater.eof:
        length, kind = struct.unpack(">I4s", head)
        data = stream.read(length)
        stream.seek(4, os.SEEK_CUR)  # over the checksum
        while kind == b"IDAT" and data:
            try:
                yield len(inflater.decompress(data, INFLATED_AT_ONCE))
            except zlib.error as error:
                raise ValueError(f"model: expected a valid PNG, got {stream.name} with an error: {error}") from None
            data = inflater.unconsumed_tail


def _read(file: Path, most: int) -> _Asked:
    """What one XML file of at most so many bytes asks for, where it is there once."""
    if not file.is_file() or file.stat().st_size > most:
        raise ValueError(f"model: expected files of at most {MAX_XML >> 20} MB of XML, got {file}")
    data = file.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if b"&#" in data or SPLIT_NAME.search(data):
        raise ValueError(f"model: expected plain names in {file}, got '&#', or a line break or tab in one; rename it")
    asked = _Asked(size=len(data))
    copies = [1.0]  # for each open element: how often what is in it is there

    def start(tag: str, attributes: dict[str, str]) -> None:
        tag = tag.lower()  # MuJoCo knows <INCLUDE> too
        _add_element(asked, tag, attributes, copies[-1], len(copies))
        copies.append(copies[-1] * (_product(attributes, "count") if tag == "replicate" else 1.0))
        asked.check(file)

    def refuse(*_: object) -> None:
        raise ValueError(f"model: expected no document type in {file}, got one; remove the line with <!DOCTYPE")

    # Bytes as they are, whatever the file says of its encoding: MuJoCo does not look at that either.
    parser = expat.ParserCreate("iso-8859-1")
    parser.StartElementHandler, parser.StartDoctypeDeclHandler = start, refuse
    parser.EndElementHandler = lambda tag: copies.pop()
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise ValueError(f"robot: expected a valid MJCF in {file}, got an error: {error}") from None
    return asked


def _add_element(asked: _Asked, tag: str, attributes: dict[str, str], times: float, depth: int) -> None:
    """Adds an element that is there so many times, so deep."""
    files = [_path(value) for name, value in attributes.items() if name.startswith("file") and value]
    made = _product(attributes, "count") if tag in ("replicate", "composite") else 1.0
    keys = _product(attributes, "nkey") if tag == "size" and "nkey" in attributes else 0.0
    asked.parts += times * (made + keys + len(files))
    # Each part of a cable hangs on the one before.
    asked.depth = max(asked.depth, depth + (int(min(made, MAX_PARTS)) if tag == "composite" else 0))
    asked.memory += times * (CHARACTER_BYTES * sum(map(len, attributes.values())) + _memory(tag, attributes))
    asked.keys += times * (keys + (tag == "key"))
    nuser = sum(_product(attributes, name) for name in attributes if name.startswith("nuser_"))
    asked.user = max(asked.user, nuser, len(attributes.get("user", "")))
    asked.folders |= {_path(attributes[name]) for name in FOLDERS if name in attributes}
    if tag == "include":
        asked.included += [(name, times, depth) for name in files]
    elif tag == "model":
        asked.models += [(attributes.get("name", ""), name) for name in files]
    else:
        asked.assets += [(name, times) for name in files]
    if tag == "flexcomp":  # it makes bodies of a file's vertices
        raise ValueError("model: expected a robot without soft bodies, got a flexcomp; remove it")
    if tag == "attach":
        asked.attached.append((attributes.get("model", ""), times))
    if tag == "lengthrange":
        step = max(_numbers(attributes, "timestep", "0.01")[0], 1e-9)
        if not _numbers(attributes, "inttotal", "10")[0] <= MAX_STEPS * step:
            raise ValueError(
                f"model: expected a lengthrange of at most {MAX_STEPS} steps, got more; lower its inttotal"
            )


def _path(value: str) -> str:
    """The path that an attribute gives, as MuJoCo reads it."""
    path = os.fsdecode(value.encode("iso-8859-1")).replace("\\", "/")
    if STRANGE_NAME.search(path):
        raise ValueError(f"model: expected a path without a colon and not in an archive, got {path[:80]!r}; move it")
    return path


def _memory(tag: str, attributes: dict[str, str]) -> float:
    """Bytes that an element takes beyond those of its text."""
    if tag == "hfield":
        return FIELD_BYTES * _product(attributes, "nrow", "ncol")
    if tag == "texture" and attributes.get("type") == "2d":
        return PIXEL_BYTES * _product(attributes, "width", "height")
    if tag == "texture":
        return PIXEL_BYTES * 6 * _product(attributes, "width", "width")  # the faces of a cube
    if tag == "mesh":
        most = max(_numbers(attributes, "params"))
        return VERTEX_BYTES * most * most  # which of them are numbers of vertices depends on the shape
    if tag == "size":
        memory = {name: value.upper().translate(SUFFIXES) for name, value in attributes.items()}
        return NUMBER_BYTES * _product(attributes, "nuserdata") + _product(memory, "memory")
    return NUMBER_BYTES * (_product(attributes, "nsample") + _product(attributes, "actdim"))


def _product(attributes: dict[str, str], *names: str) -> float:
    """All numbers of these attributes multiplied; one that is missing or below 1 counts as 1."""
    return math.prod(max(1.0, number) for name in names for number in _numbers(attributes, name))


def _numbers(attributes: dict[str, str], name: str, default: str = "1") -> list[float]:
    text = attributes.get(name, default)
    try:
        return [float(number) for number in text.split(maxsplit=16)] or [1.0]
    except ValueError:
        raise ValueError(f"model: expected numbers in {name}, got {text[:80]!r}; write some") from None
