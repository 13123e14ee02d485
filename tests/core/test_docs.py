"""What README and docs tell people to type."""

import re
import shlex
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from short_run import SETTINGS, SIZES, TRAIN_FLAGS, flags

import nil_jax
from nil_jax import cli
from nil_jax.reference import read_video, write_video

ROOT = Path(__file__).resolve().parents[2]
SMALL = flags(SIZES)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: Path) -> list[list[str]]:
    """The nil-jax commands of a page's code blocks, in order."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    lines = [line for kind, block in blocks if not kind for line in block.splitlines() if line.startswith("nil-jax ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)", page.read_text(), flags=re.MULTILINE)
    return {"".join(c for c in title.lower() if c.isalnum() or c in "_- ").replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "benchmarks" / "RESULTS.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", page.read_text()):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target
            assert not anchor or anchor in anchors(page.parent / target if target else page), anchor


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
    cli.main(["prepare", str(tiny_path), str(clip), "-o", str(folder / "walk.ref"), *SMALL])
    cli.main(["train", str(tiny_path), str(folder / "walk.ref"), "-o", str(folder / "runs/h1"), *TRAIN_FLAGS])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_do_what_they_say(page, prepared, tiny_path, clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Back and forth, four times: `--cycle` finds a stride in it, at twice the speed too.
    frames = read_video(clip).frames
    write_video(tmp_path / "walk.mp4", np.concatenate([frames, frames[::-1]] * 4), 25.0)
    robots = ("unitree_h1", "unitree_a1", "talos", "path/to/robot.xml", "my_robot.xml")
    names = dict.fromkeys(robots, str(tiny_path))
    shorter = {
        "prepare": SMALL,
        "train": TRAIN_FLAGS,
        "eval": ["--num-envs", "1"],
        "distill": ["--num-steps", "2", "--num-motions", "2", "--teacher", "none"],
    }
    made = set()
    for argv in commands(page):
        argv = [names.get(word, word) for word in argv]
        output = argv[argv.index("-o") + 1] if "-o" in argv else None
        if argv[0] == "generate" or "--distributed" in argv or (output in made and "--resume" not in argv):
            continue  # no video model, no other hosts here; a page may show one command in several forms
        made.add(output)
        for name in ("walk.ref", "runs/h1"):
            if name in argv and not (tmp_path / name).exists() and (name != output or "--resume" in argv):
                shutil.copytree(prepared / name, tmp_path / name)
        with jax.debug_key_reuse("--seeds" not in argv):  # the checker takes a slice of a batch of keys for the batch
            cli.main(argv + shorter.get(argv[0], []))
        assert output is None or (tmp_path / output).exists()


def scripts(page: Path) -> str:
    """The Python blocks of a page, which go on from each other."""
    return "".join(re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Brax and JAXopt warn that they are no longer developed
@pytest.mark.parametrize("page", [page for page in PAGES if scripts(page)], ids=lambda page: page.name)
def test_python_runs_as_printed_only_shorter(page, request, tiny_path, clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = scripts(page)
    assert code.count("train(") == code.count("num_timesteps=100_000")
    if "load_pretrained" in code:
        nil_jax.save_pretrained(request.getfixturevalue("prepared") / "runs/h1", tmp_path / "walk")
    for printed, used in {
        '"unitree_a1"': repr(str(tiny_path)),
        '"examples/a1_prowl.mp4"': repr(str(clip)),
        '"unitree_h1/walk"': repr(str(tmp_path / "walk")),
        "num_timesteps=100_000": ", ".join(f"{name}={value!r}" for name, value in (SETTINGS | SIZES).items()),
        "num_envs=8": "num_envs=1",
        "(found.env, found.policy)": "(found.env, found.policy, num_envs=1)",
    }.items():
        code = code.replace(printed, used)
    names = {}
    exec(compile(code, page.name, "exec"), names)
    assert names["result"].evaluation["policy"]["length"] > 0
