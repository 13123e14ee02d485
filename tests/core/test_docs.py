"""What README and docs tell people to type."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from short_run import TRAIN_FLAGS

from nil_jax import cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: Path) -> list[list[str]]:
    """The nil-jax commands of a page's code blocks, in order."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    lines = [line for kind, block in blocks if not kind for line in block.splitlines() if line.startswith("nil-jax ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_understood(page):
    for argv in commands(page):
        assert callable(cli._parsed(argv))


def test_commands_are_found():
    named = {argv[0] for page in PAGES for argv in commands(page)}
    assert named == set(cli.COMMANDS)


@pytest.fixture(scope="module")
def prepared(tiny_path, clip, tmp_path_factory):
    """What pages take for granted: a reference, and a run on it."""
    folder = tmp_path_factory.mktemp("docs")
    cli.main(["prepare", str(tiny_path), str(clip), "-o", str(folder / "walk.ref")])
    cli.main(["train", str(tiny_path), str(folder / "walk.ref"), "-o", str(folder / "runs/h1"), *TRAIN_FLAGS])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_do_what_they_say(page, prepared, tiny_path, clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "walk.mp4").symlink_to(clip)
    names = dict.fromkeys(("unitree_h1", "path/to/robot.xml", "my_robot.xml"), str(tiny_path))
    shorter = {
        "train": TRAIN_FLAGS,
        "eval": ["--num-envs", "1"],
        "distill": ["--num-steps", "2", "--num-motions", "2", "--teacher", "none"],
    }
    made = set()
    for argv in commands(page):
        argv = [names.get(word, word) for word in argv]
        output = argv[argv.index("-o") + 1] if "-o" in argv else None
        if argv[0] == "generate" or (output in made and "--resume" not in argv):
            continue  # a video model is nothing for a test; a page may show one command in several forms
        made.add(output)
        for name in ("walk.ref", "runs/h1"):
            if name in argv and not (tmp_path / name).exists() and (name != output or "--resume" in argv):
                shutil.copytree(prepared / name, tmp_path / name)
        cli.main(argv + shorter.get(argv[0], []))
        assert output is None or (tmp_path / output).exists()
