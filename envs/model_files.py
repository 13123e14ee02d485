"""What an MJCF may make MuJoCo read and build: looked at before MuJoCo sees the model.

A model is a file that anyone may have made. It names other files (includes, meshes, textures, fields), which have
to lie in its own folder, and sizes, which have to be those of a robot.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from xml.parsers import expat

ROOT_VARIABLE = "NIL_JAX_MODEL_ROOT"  # a folder in which files may lie too
FOLDERS = ("meshdir", "texturedir", "assetdir")
MAX_XML = 64 * 2**20  # bytes of all XML files of a model; Menagerie's largest has 1 MB
MAX_ASSET = 2**30  # bytes of one mesh, texture or height field
MAX_COPIES = 10_000  # of a body by replicate, or parts of a composite or flexcomp
MULTIPLIED = ("replicate", "composite", "flexcomp")
MAX_CELLS = 2**26  # of a height field, or pixels of a drawn texture
MAX_DEPTH = 500  # of elements; MuJoCo reads each level on the stack
SIZES = {  # attributes of an element whose numbers are multiplied, and the most that comes out
    "replicate": (("count",), MAX_COPIES),
    "composite": (("count",), MAX_COPIES),
    "flexcomp": (("count",), MAX_COPIES),
    "hfield": (("nrow", "ncol"), MAX_CELLS),
    "texture": (("width", "height"), MAX_CELLS),
}


def check_model(path: Path) -> None:
    """Looks at a model and all that it includes.

    Raises:
        ValueError: not XML, a document type (entities could grow without end), files outside the model's folder and
            outside that of NIL_JAX_MODEL_ROOT, or sizes that no robot has.
    """
    here = path.parent
    allowed = [folder.resolve() for folder in (here, _also_allowed()) if folder is not None]
    waiting, seen, folders, named, total = [(path, 1.0)], {}, {""}, set(), 0
    while waiting:
        file, copies = waiting.pop()
        if copies <= seen.get(file.resolve(), 0.0):
            continue
        seen[file.resolve()] = copies
        total += file.stat().st_size
        if total > MAX_XML or not file.is_file():
            raise ValueError(f"model: expected files of at most {MAX_XML >> 20} MB of XML, got {file}")
        included, more, names = _parts(file, copies)
        folders |= more
        named |= {(file.parent, name) for name in names}
        for name, times in included.items():
            waiting += [(found, times) for found in _found({here, file.parent}, {""}, name, allowed)]
    for folder, name in named:
        for found in _found({here, folder}, folders, name, allowed):
            if not found.is_file() or found.stat().st_size > MAX_ASSET:
                raise ValueError(f"model: expected a file of at most {MAX_ASSET >> 30} GB, got {found}")


def _also_allowed() -> Path | None:
    chosen = os.environ.get(ROOT_VARIABLE)
    return Path(chosen).expanduser() if chosen else None


def _found(places: set[Path], folders: set[str], name: str, allowed: list[Path]) -> Iterator[Path]:
    """Files that the name may mean, in any of the folders; one that is there has to be in an allowed folder."""
    # MuJoCo takes both slashes, and with strippath only the last part of a name.
    spellings = {name, name.replace("\\", "/"), name.replace("\\", "/").rsplit("/")[-1]} - {""}
    for place in places:
        for folder in {part for given in folders for part in (given, given.replace("\\", "/"))}:
            for spelling in spellings:
                file = place / folder / spelling
                if not os.path.exists(file):
                    continue
                if not any(file.resolve().is_relative_to(root) for root in allowed):
                    raise ValueError(
                        f"model: expected files inside {allowed[0]}, got {file.resolve()}; move it there, or allow a "
                        f"folder that holds both with {ROOT_VARIABLE}=FOLDER"
                    )
                yield file


def _parts(file: Path, times: float) -> tuple[dict[str, float], set[str], set[str]]:
    """Of one XML file that is there so many times: the XML files in it, the folders of its assets, and their names.

    With each XML file stands how often that one is there then.
    """
    included: dict[str, float] = {}
    models: set[str] = set()
    attached = times  # copies of the models, at most
    folders: set[str] = set()
    names: set[str] = set()
    copies = [times]  # for each open element: how often what is in it is there

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal attached
        size = _size(file, tag, attributes)
        made = copies[-1] * (size if tag in MULTIPLIED else 1.0)
        copies.append(made if tag == "replicate" else copies[-1])
        if made > MAX_COPIES or len(copies) > MAX_DEPTH:
            raise ValueError(
                f"model: expected at most {MAX_COPIES} copies and {MAX_DEPTH} levels, got more in {file}; simplify it"
            )
        folders.update(_text(attributes[name]) for name in FOLDERS if name in attributes)
        files = {_text(value) for name, value in attributes.items() if name.startswith("file")}
        if tag == "include":
            included.update({name: max(copies[-1], included.get(name, 0.0)) for name in files})
        else:
            (models if tag == "model" else names).update(files)
        if tag == "attach":
            attached = max(attached, copies[-1])

    def refuse(*_: object) -> None:
        raise ValueError(f"model: expected no document type in {file}, got one; remove the line with <!DOCTYPE")

    # Bytes as they are, whatever the file says of its encoding: MuJoCo does not look at that either.
    parser = expat.ParserCreate("iso-8859-1")
    parser.StartElementHandler, parser.StartDoctypeDeclHandler = start, refuse
    parser.EndElementHandler = lambda tag: copies.pop()
    try:
        parser.Parse(file.read_bytes().removeprefix(b"\xef\xbb\xbf"), True)
    except expat.ExpatError as error:
        raise ValueError(f"robot: expected a valid MJCF in {file}, got an error: {error}") from None
    included |= {name: max(attached, included.get(name, 0.0)) for name in models}
    return included, folders, names


def _text(value: str) -> str:
    return os.fsdecode(value.encode("iso-8859-1", "replace")).replace("\0", "")


def _size(file: Path, tag: str, attributes: dict[str, str]) -> float:
    """How many parts an element asks for."""
    wanted, most = SIZES.get(tag, ((), 0))
    try:
        size = math.prod(max(1.0, float(n)) for name in wanted for n in attributes.get(name, "").split())
    except ValueError:
        return 1.0  # not numbers: MuJoCo refuses them
    if wanted and not size <= most:
        raise ValueError(f"model: expected at most {most} parts of a {tag} in {file}, got {size:g}; make it smaller")
    return size
