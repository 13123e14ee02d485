"""The reference of the API: every public name explains itself, and what is made from that is up to date."""

import importlib
import inspect
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
API = runpy.run_path(str(DOCS / "make_api.py"))


@pytest.mark.parametrize("name", API["PUBLIC"])
def test_every_public_name_explains_itself(name):
    module = importlib.import_module(name)
    assert module.__all__ == sorted(module.__all__, key=lambda n: (not n.isupper(), not n[0].isupper(), n))
    for public in module.__all__:
        value = getattr(module, public)
        if inspect.isclass(value) or inspect.ismodule(value) or inspect.isroutine(inspect.unwrap(value)):
            assert (value.__doc__ or "").strip(), public
        assert API["summary"](value), public


def test_the_committed_list_is_that_of_the_docstrings():
    assert (DOCS / "api.md").read_text() == API["markdown"](), "type: make docs"


def test_comments_of_settings_are_their_explanation():
    comments = API["field_comments"](importlib.import_module("nil_jax.rollout").ImitationConfig)
    assert comments["starts"].startswith("Where training begins: at rest") and "IoU" in comments["lost_iou"]


@pytest.mark.slow
def test_pages_are_made_without_a_warning(tmp_path):
    command = [sys.executable, str(DOCS / "make_api.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    page = (tmp_path / "nil_jax" / "rollout.html").read_text()
    assert "mask IoU below which a robot counts as fallen" in page and "jaxtyping" not in page.split("View Source")[0]
    assert {path.stem for path in (tmp_path / "nil_jax").iterdir()} == {n.split(".")[1] for n in API["PAGES"][1:]}
