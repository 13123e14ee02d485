"""What ships: the package map, the public names, and an import that stays light."""

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import nil_jax

ROOT = Path(__file__).resolve().parents[2]

PUBLIC = [
    "Config",
    "ImitationEnv",
    "Pretrained",
    "Reference",
    "TrainingResult",
    "Transition",
    "envs",
    "evaluate",
    "generate_clip",
    "generate_reference",
    "list_pretrained",
    "load_encoder",
    "load_pretrained",
    "make_actor_critic",
    "make_film",
    "make_policy",
    "prepare_reference",
    "preset",
    "read_video",
    "rewards",
    "save_pretrained",
    "train",
    "train_seeds",
    "with_embeddings",
]


def test_public_names_are_these():
    assert nil_jax.__all__ == sorted(PUBLIC)
    assert all(hasattr(nil_jax, name) for name in PUBLIC)


def test_package_list_holds_every_folder_with_code():
    with (ROOT / "pyproject.toml").open("rb") as file:
        settings = tomllib.load(file)["tool"]["setuptools"]
    folders = {"nil_jax": "nil_jax", "envs": "nil_jax.envs", "rewards": "nil_jax.rewards"}
    found = {"nil_jax.envs.assets", "nil_jax.rewards.assets"}  # files without code
    for init in [path for top in folders for path in (ROOT / top).rglob("__init__.py")]:
        top, *below = init.parent.relative_to(ROOT).parts
        found.add(".".join([folders[top], *below]))
    assert set(settings["packages"]) == found


@pytest.mark.parametrize("name", ["envs", "rewards"])
def test_a_second_copy_from_the_root_is_refused(name):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {name}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert result.returncode != 0 and f"nil_jax.{name}" in result.stderr


def test_importing_touches_no_device_and_no_heavy_library():
    code = (
        "import sys, nil_jax; from jax._src import xla_bridge; "
        "print(xla_bridge.backends_are_initialized(), [n for n in ('torch', 'transformers', 'diffusers') "
        "if n in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "[]"]


def test_every_public_name_has_a_docstring():
    for name in PUBLIC:
        value = getattr(nil_jax, name)
        assert (value.__doc__ or "").strip(), name
    assert importlib.import_module("nil_jax.cli").__doc__
