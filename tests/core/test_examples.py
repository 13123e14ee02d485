"""The notebooks and scripts of examples/: they are clean, and in small they do what they show."""

import json
import pkgutil
import re
import runpy
import subprocess
import sys
import types
from functools import partial
from pathlib import Path

import pytest
from matplotlib import pyplot
from short_run import SETTINGS, flags

import nil_jax
from nil_jax import cli

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
SCRIPTS = [EXAMPLES / name for name in ("custom_reward.py", "run_in_mujoco.py", "several_seeds.py")]
TINY = {
    "num_timesteps": 128,
    "num_envs": 8,
    "num_evals": 2,
    "num_eval_envs": 2,
    "learning_starts": 32,
    "batch_size": 16,
    "grad_updates_per_step": 1,
    "actor_hidden": (8,),
    "critic_hidden": (8,),
    "config": nil_jax.Config().with_fields(encoder=None),  # the student takes long to compile
}


def code_cells(notebook: Path) -> list[str]:
    """Sources of the code cells, as Python alone: magics become `pass`."""
    cells = json.loads(notebook.read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return [re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.MULTILINE) for source in sources]


def test_the_notebooks_are_these():
    assert [path.stem for path in NOTEBOOKS] == ["quick_start", "your_own_robot", "your_own_video"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_valid_and_holds_no_outputs(path):
    book = json.loads(path.read_text())
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert set(book) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    ids = [cell["id"] for cell in book["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name) for name in ids)
    for cell in book["cells"]:
        assert cell["metadata"] == {} and all(isinstance(line, str) for line in cell["source"])
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
        else:
            assert cell["cell_type"] == "markdown" and set(cell) == {"cell_type", "id", "metadata", "source"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_notebook_takes_from_the_library_is_there(path):
    names = re.findall(r"\bnil_jax(?:\.\w+)+", "\n".join(code_cells(path)))
    assert "nil_jax.train" in names
    for name in names:
        pkgutil.resolve_name(name)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_compiles_installs_first_and_has_its_settings_in_one_cell(path):
    for i, source in enumerate(code_cells(path)):
        compile(source, f"{path.name}, cell {i}", "exec")
    sources = ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if "outputs" in cell]
    assert [i for i, source in enumerate(sources) if "pip install" in source] == [0] and 'SOURCE = ".."' in sources[0]
    assert [i for i, source in enumerate(sources) if source.startswith("# Settings\n")] == [1]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_of_a_notebook_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        assert target.startswith("https://") or (EXAMPLES / target).exists(), target


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_explains_itself(path, capsys):
    script = runpy.run_path(str(path))
    assert f"python examples/{path.name}" in script["__doc__"]
    with pytest.raises(SystemExit) as stopped:
        script["main"](["--help"])
    assert stopped.value.code == 0 and "usage:" in capsys.readouterr().out


def test_the_interval_is_that_of_student():
    interval = runpy.run_path(str(EXAMPLES / "several_seeds.py"))["interval"]
    mean, half = interval([1.0, 2.0, 3.0])
    # t of 0.975 and 2 degrees of freedom is 4.303; the standard error is 1 / sqrt(3).
    assert mean == 2.0 and half == pytest.approx(4.303 / 3**0.5, abs=1e-3)


def test_seeds_of_other_commands_are_no_seeds_of_one_mean(tmp_path):
    check_same = runpy.run_path(str(EXAMPLES / "several_seeds.py"))["check_same"]
    check_same(["unitree_a1", "walk.mp4", "--num-timesteps", "75000"], tmp_path / "runs")
    check_same(["unitree_a1", "walk.mp4", "--num-timesteps", "75000"], tmp_path / "runs")
    with pytest.raises(SystemExit, match=r"75000; got .* 300000; type another -o"):
        check_same(["unitree_a1", "walk.mp4", "--num-timesteps", "300000"], tmp_path / "runs")


class Shown:
    """Stands in for `IPython.display`: keeps what is shown, and looks at the files."""

    def __init__(self):
        self.shown, self.updates = [], []
        self.module = types.ModuleType("IPython.display")
        self.module.Video = self.module.Image = self.file
        self.module.HTML, self.module.display = self.text, self.display

    def file(self, path, embed=False):
        assert Path(path).stat().st_size > 500, path
        self.shown.append(path)

    def text(self, page):
        assert "<" in page
        self.shown.append(page)

    def display(self, what, display_id):
        assert display_id is True
        return types.SimpleNamespace(update=self.updates.append)


@pytest.fixture(scope="module")
def made(tiny_path, clip, tmp_path_factory):
    """A reference, a run on it and its policy in the two forms that others take."""
    folder = tmp_path_factory.mktemp("made")
    cli.main(["prepare", str(tiny_path), str(clip), "-o", str(folder / "swing.ref")])
    nil_jax.train(str(tiny_path), folder / "swing.ref", output=folder / "run", progress=False, **TINY)
    nil_jax.save_pretrained(folder / "run", folder / "shipped")
    cli.main(["export", str(folder / "run"), "-o", str(folder / "exported")])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, made, tiny_path, clip, tmp_path, monkeypatch):
    pyplot.switch_backend("agg")
    shown = Shown()
    monkeypatch.setitem(sys.modules, "IPython.display", shown.module)
    monkeypatch.chdir(tmp_path)
    smaller = {
        "ROBOT": str(tiny_path),
        "CLIP": str(clip),
        "TRAINING": SETTINGS,
        "SECONDS": 0.4,
        "PREPARE": {"speed": 1.0},
    }
    smaller["SHIPPED"] = str(made / "shipped")
    install, settings, *cells = code_cells(path)
    names = {"__name__": "__main__"}
    exec(compile(install, path.name, "exec"), names)
    exec(compile(settings, path.name, "exec"), names)
    names |= {name: value for name, value in smaller.items() if name in names}
    for i, source in enumerate(cells):
        exec(compile(source, f"{path.name}, cell {i + 2}", "exec"), names)
    assert shown.shown and (tmp_path / names["OUTPUT"] / "report.html").is_file()
    assert names["result"].evaluation["policy"]["length"] > 0
    assert len(shown.updates) == (0 if path.stem == "your_own_robot" else SETTINGS["num_evals"])


@pytest.mark.slow
def test_a_reward_of_ones_own_is_trained_and_logged(made, tiny_path, tmp_path, monkeypatch, capsys):
    tiny = {name: value for name, value in TINY.items() if name != "num_timesteps"}
    monkeypatch.setattr(nil_jax, "train", partial(nil_jax.train, **tiny))
    arguments = [str(tiny_path), str(made / "swing.ref"), "-o", str(tmp_path / "run"), "--num-timesteps", "128"]
    runpy.run_path(str(EXAMPLES / "custom_reward.py"))["main"](arguments)
    assert "policy: return " in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    terms = [row["reward/own"] for row in rows if "reward/own" in row]
    assert terms and all(0 < term <= 1 for term in terms)


@pytest.mark.slow
def test_seeds_are_trained_once_and_summed_up(made, tiny_path, tmp_path, capsys):
    main = runpy.run_path(str(EXAMPLES / "several_seeds.py"))["main"]
    named = [str(tiny_path), str(made / "swing.ref"), "-o", str(tmp_path / "runs")]
    arguments = [*named, "--seeds", "2", *flags(SETTINGS)]
    main(arguments)
    first = capsys.readouterr().out
    assert [line.split()[0] for line in first.splitlines()] == ["return", "mask_iou", "distance", "fall"]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["command.txt", "seed_0", "seed_1"]
    before = (tmp_path / "runs" / "seed_1" / "evaluation.json").stat().st_mtime_ns
    main(arguments)
    assert capsys.readouterr().out == first
    assert (tmp_path / "runs" / "seed_1" / "evaluation.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_an_exported_policy_runs_without_the_library(made, capsys):
    script = EXAMPLES / "run_in_mujoco.py"
    alone = (
        "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__'); "
        "assert not any(name.split('.')[0] in ('nil_jax', 'brax', 'flax') for name in sys.modules)"
    )
    command = [sys.executable, "-c", alone, str(script), str(made / "exported"), "--seconds", "0.5"]
    told = subprocess.check_output(command, text=True)
    assert re.fullmatch(r"-?[\d.]+ m in [\d.]+ s (and fell|without a fall)\n", told)
    runpy.run_path(str(script))["main"]([str(made / "run"), "--seconds", "0.5"])
    assert capsys.readouterr().out == told
