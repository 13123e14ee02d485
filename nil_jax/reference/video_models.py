"""Image-to-video models of diffusers: how one is found, checked and loaded.

Only safetensors are read and no code of a model is run: a pipeline that is not in `FAMILIES` is refused.
"""

import contextlib
import hashlib
import importlib
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from nil_jax.files import one_line, read_json
from nil_jax.reference.families import FAMILIES, Family

INDEX = "model_index.json"
EXTRA = 'type: pip install "nil-jax[generate]"'


@dataclass(frozen=True)
class VideoModel:
    """A model on disk that `load_pipeline` can load."""

    name: str  # as the user gave it
    folder: Path
    index: Mapping[str, Any]  # its model_index.json
    family: Family

    @property
    def usual_frames(self) -> int:
        """Frames of a usual clip."""
        frames = self.family.num_frames
        return frames if isinstance(frames, int) else int(_setting(self.folder, self.index, *frames))

    @property
    def pipeline_class(self) -> Any:
        """The class in diffusers.

        Raises:
            ValueError: diffusers is missing, or too old to have it.
        """
        diffusers = import_generation()
        found = getattr(diffusers, self.family.pipeline, None)
        if found is None:
            raise ValueError(
                f"diffusers: expected a version with {self.family.pipeline}, got {diffusers.__version__}; "
                "type: pip install --upgrade diffusers"
            )
        return found

    def default(self, argument: str) -> Any:
        """What the pipeline takes where nothing is asked for."""
        parameters = inspect.signature(self.pipeline_class.__call__).parameters
        return self.family.defaults.get(argument, parameters[argument].default)

    def identity(self) -> dict[str, str]:
        """The commit of a model from Hugging Face; of any other folder the hash of its files."""
        return folder_identity(self.folder)


def folder_identity(folder: Path) -> dict[str, str]:
    """The commit of a snapshot from Hugging Face; of any other folder the hash of its files."""
    if folder.parent.name == "snapshots":
        return {"revision": folder.name}
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            with path.open("rb") as file:
                digest.update(f"{name.as_posix()} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return {"sha256": digest.hexdigest()}


def import_generation() -> ModuleType:
    """diffusers, with what it needs for these pipelines.

    Raises:
        ValueError: something of the extra "generate" is not installed.
    """
    try:
        import diffusers
        import ftfy  # noqa: F401  (Wan's pipeline fails in mid-flight without it)
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise ValueError(f"generate: expected the packages for video models, got {error}; {EXTRA}") from None
    return diffusers


def find_model(folder_or_id: str | Path) -> VideoModel:
    """A model in a folder, or one from Hugging Face, downloaded where it is not in its cache.

    Args:
        folder_or_id: folder with a model_index.json, or an id such as owner/name, with @revision behind it if wanted.

    Raises:
        ValueError: neither; not image-to-video; or parts that need code of their own.
    """
    name = str(folder_or_id)
    folder = Path(name).expanduser()
    if folder.is_dir():
        index = _read_index(folder)
        _families(index)
    else:
        folder, index = _download(name)
    for family in _families(index):
        if family.mark is None or _setting(folder, index, *family.mark):
            return VideoModel(name, folder, index, family)
    raise _refused(index)


def _download(name: str) -> tuple[Path, Mapping[str, Any]]:
    """The folder of a Hugging Face id. Its index comes first, so that a wrong model costs no download."""
    wanted = f"model: expected a folder or a Hugging Face id such as owner/name, got {name!r}"
    identifier, _, revision = name.partition("@")
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", identifier):
        raise ValueError(f"{wanted}, which is no folder")
    diffusers = import_generation()
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    try:
        with quiet("diffusers", "transformers"):
            index = _read_index(Path(hf_hub_download(identifier, INDEX, revision=revision or None)).parent)
            pipeline = getattr(diffusers, _families(index)[0].pipeline)
            folder = Path(pipeline.download(identifier, revision=revision or None, use_safetensors=True))
    except (OSError, RuntimeError, HFValidationError) as error:
        raise ValueError(f"{wanted}, which is no folder and was not found: {one_line(error)}") from None
    return folder, index


def _read_index(folder: Path) -> Mapping[str, Any]:
    path = folder / INDEX
    if not path.is_file():
        raise ValueError(
            f"model: expected a diffusers model, a folder with {INDEX}, got {folder}, which has none; "
            "a single .safetensors file or weights of another library will not do"
        )
    return read_json(path, "model")


def _families(index: Mapping[str, Any]) -> list[Family]:
    """The families that a model may belong to, before its components are looked at.

    Raises:
        ValueError: none, or components that neither diffusers nor transformers have.
    """
    found = [f for f in FAMILIES if index.get("_class_name") == f.pipeline]
    # A text-to-video class alone does not tell that the weights take an image, where its family has a mark.
    found += [
        f for f in FAMILIES if index.get("_class_name") in f.others and (not f.mark or _setting(None, index, *f.mark))
    ]
    if not found:
        raise _refused(index)
    known = ("diffusers", "transformers", *(module for family in found for module in family.modules))
    for part, value in index.items():
        # Components are [library, class]; everything else is a plain setting.
        if isinstance(value, list) and len(value) == 2 and value[0] not in (None, *known):
            raise ValueError(
                f"model: expected parts of diffusers and transformers, got {part!r} from {value[0]!r}; code that comes "
                "with a model is not run, use a model without"
            )
    return found


def _refused(index: Mapping[str, Any]) -> ValueError:
    classes = sorted({name for family in FAMILIES for name in (family.pipeline, *family.others) if not family.mark})
    return ValueError(
        f"model: expected an image-to-video pipeline ({', '.join(classes)}, or Wan 2.2 TI2V), "
        f"got {index.get('_class_name')!r}; use another model"
    )


def _setting(folder: Path | None, index: Mapping[str, Any], component: str, name: str) -> Any:
    """A setting of the pipeline or of a component; None where there is none."""
    if not component:
        return index.get(name)
    return read_json(Path(folder or "", component, "config.json"), "model").get(name)


def best_device() -> str:
    """PyTorch's name of the device that generates: "cuda", "mps" or "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def load_pipeline(model: VideoModel, *, dtype: str, offload: str = "none") -> Any:
    """The pipeline on the best device there is, ready to be called.

    Args:
        model: from `find_model`.
        dtype: of weights and activations, "bfloat16", "float16" or "float32".
        offload: "model" keeps on the GPU only the component that works, "sequential" only the layer that works.

    Raises:
        ValueError: damaged or incomplete, no safetensors, too large for the device, or offloading without a GPU.
    """
    load = model.pipeline_class.from_pretrained
    import torch

    device = best_device()
    if offload != "none" and device == "cpu":
        raise ValueError(f"offload: expected 'none' on a machine without a GPU, got {offload!r}; leave it out")
    dtypes = {"default": getattr(torch, dtype)} | dict.fromkeys(model.family.float32, torch.float32)
    try:
        with quiet("diffusers", "transformers"):
            pipeline = load(model.folder, dtype=dtypes, use_safetensors=True)
    except Exception as error:  # whatever a damaged folder leads to, in diffusers, transformers, torch or safetensors
        raise ValueError(
            f"model: expected a complete {model.family.pipeline} with safetensors in {model.folder}, "
            f"got {type(error).__name__}: {one_line(error)}"
        ) from error
    if offload == "none":
        try:
            pipeline.to(device)
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"memory: expected a model that fits, got {one_line(error)}; type: --offload model, or sequential"
            ) from None
    else:
        {"model": pipeline.enable_model_cpu_offload, "sequential": pipeline.enable_sequential_cpu_offload}[offload]()
        if hasattr(pipeline.vae, "enable_tiling"):  # memory is scarce, and the decoder's peak is the highest
            pipeline.vae.enable_tiling()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@contextlib.contextmanager
def quiet(*libraries: str) -> Iterator[None]:
    """Without the own progress bars of these libraries of Hugging Face."""
    logs = [importlib.import_module(f"{library}.utils.logging") for library in libraries]
    shown = [log.is_progress_bar_enabled() for log in logs]
    for log in logs:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log, was_shown in zip(logs, shown, strict=True):
            if was_shown:
                log.enable_progress_bar()
