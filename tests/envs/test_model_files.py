"""What a model may name: files inside its folder, and sizes that a robot has."""

import re
from pathlib import Path

import mujoco
import pytest
from conftest import TINY_ROBOT
from PIL import Image

from nil_jax import envs
from nil_jax.envs.model_files import check_model

SOURCES = Path(__file__).resolve().parents[2]
CUBE = (
    "\n".join(f"v {x} {y} {z}" for x in (0, 0.1) for y in (0, 0.1) for z in (0, 0.1)) + "\nf 1 2 3\nf 2 4 8\nf 1 5 6\n"
)


def model(folder, asset="", compiler="", body=""):
    """The tiny robot with something added."""
    folder.mkdir(exist_ok=True)
    text = TINY_ROBOT.replace("<worldbody>", f"<asset>{asset}</asset>{compiler}<worldbody>{body}", 1)
    (folder / "robot.xml").write_text(text)
    return folder / "robot.xml"


@pytest.fixture
def folder(tmp_path):
    """A model's folder `in`, and files in it and outside."""
    for place in (tmp_path, tmp_path / "in", tmp_path / "in" / "assets"):
        place.mkdir(exist_ok=True)
        (place / "a.obj").write_text(CUBE)
        (place / "part.xml").write_text("<mujoco><option/></mujoco>")
        Image.new("RGB", (4, 4)).save(place / "a.png")
    (tmp_path / "in" / "link.obj").symlink_to(tmp_path / "a.obj")
    (tmp_path / "in" / "out").symlink_to(tmp_path)
    (tmp_path / "in" / "chain.xml").write_text('<mujoco><include file="../part.xml"/></mujoco>')
    return tmp_path / "in"


@pytest.mark.parametrize(
    ("asset", "compiler"),
    [
        ('<mesh name="m" file="a.obj"/>', ""),
        ('<mesh name="m" file="a.obj"/>', '<compiler meshdir="assets"/>'),
        ('<mesh name="m" file="assets/../a.obj"/>', '<include file="part.xml"/>'),
        ('<texture name="t" type="2d" file="a.png"/>', '<compiler assetdir="assets"/>'),
    ],
)
def test_files_inside_the_folder_are_read(folder, asset, compiler):
    assert envs.make(model(folder, asset, compiler)).action_size == 2


OUTSIDE = [
    ('<mesh name="m" file="../a.obj"/>', ""),
    ('<mesh name="m" file="..\\a.obj"/>', ""),
    ('<mesh name="m" file="{outside}/a.obj"/>', ""),
    ('<mesh name="m" file="&#46;./a.obj"/>', ""),
    ('<mesh name="m" file="link.obj"/>', ""),
    ('<mesh name="m" file="out/a.obj"/>', ""),
    ('<mesh name="m" file="a.obj"/>', '<compiler meshdir=".."/>'),
    ('<mesh name="m" file="a.obj"/>', '<compiler assetdir="{outside}"/>'),
    ('<mesh name="m" file="sub/a.obj"/>', '<compiler meshdir="../" strippath="true"/>'),
    ('<texture name="t" type="2d" file="../a.png"/>', ""),
    ('<texture name="t" type="cube" fileright="../a.png"/>', ""),
    ('<texture name="t" type="2d" file="a.png"/>', '<compiler texturedir="out"/>'),
    ('<hfield name="h" size="1 1 1 1" file="../a.png"/>', ""),
    ('<model name="other" file="../part.xml"/>', ""),
    ("", '<include file="../part.xml"/>'),
    ("", '<include file="{outside}/part.xml"/>'),
    ("", '<include file="chain.xml"/>'),
]


@pytest.mark.parametrize(("asset", "compiler"), OUTSIDE)
def test_files_outside_the_folder_are_refused_unless_the_user_allows_them(folder, asset, compiler, monkeypatch):
    path = model(folder, *(text.replace("{outside}", str(folder.parent)) for text in (asset, compiler)))
    with pytest.raises(ValueError, match=f"^model: expected files inside {folder}, got .*; move it there, or allow"):
        envs.make(path)
    monkeypatch.setenv("NIL_JAX_MODEL_ROOT", str(folder.parent))
    check_model(path)


BOMBS = {
    '<!DOCTYPE b [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]>': "expected no document type",
    '<replicate count="100000"><body/></replicate>': "at most 10000 parts of a replicate",
    '<replicate count="200">' * 2 + "<body/>" + "</replicate>" * 2: "at most 10000 copies",
    "<body>" * 600 + "</body>" * 600: "500 levels",
    '<composite type="cable" count="100000 1 1"/>': "at most 10000 parts of a composite",
    '<flexcomp name="f" count="1000 1000 1"/>': "at most 10000 parts of a flexcomp",
    '<replicate count="200"><composite type="cable" count="200 1 1"/></replicate>': "at most 10000 copies",
    '<flexcomp name="f" count="inf"/>': "at most 10000 parts of a flexcomp",
}


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb[:20])
def test_a_small_file_that_grows_is_refused(tmp_path, bomb):
    path = model(tmp_path, body="" if bomb.startswith("<!") else bomb)
    if bomb.startswith("<!"):
        path.write_text(bomb + path.read_text())
    with pytest.raises(ValueError, match=f"^model: .*{BOMBS[bomb]}"):
        envs.make(path)


@pytest.mark.parametrize(
    "asset, body",
    [
        ("", '<include file="b.xml"/>'),
        ('<model name="b" file="b.xml"/>', '<body><attach model="b" body="b" prefix="b"/></body>'),
    ],
)
def test_copies_of_copies_in_another_file_are_counted(tmp_path, asset, body):
    (tmp_path / "b.xml").write_text('<mujoco><replicate count="200"><body name="b"/></replicate></mujoco>')
    check_model(model(tmp_path, asset, body=f'<replicate count="50">{body}</replicate>'))
    with pytest.raises(ValueError, match=r"^model: .*at most 10000 copies"):
        check_model(model(tmp_path, asset, body=f'<replicate count="51">{body}</replicate>'))


@pytest.mark.parametrize(
    "asset",
    [
        '<hfield name="h" nrow="100000" ncol="100000" size="1 1 1 1"/>',
        '<texture name="t" width="99999" height="99999"/>',
    ],
)
def test_a_field_too_large_is_refused(tmp_path, asset):
    with pytest.raises(ValueError, match="at most 67108864 parts"):
        envs.make(model(tmp_path, asset))


def test_files_that_include_each_other_and_sparse_giants_are_refused(tmp_path):
    path = model(tmp_path, compiler='<include file="again.xml"/>')
    (tmp_path / "again.xml").write_text('<mujoco><include file="again.xml"/></mujoco>')
    with pytest.raises(ValueError, match=r"^robot: expected a valid MJCF"):
        envs.make(path)
    for name, what in (("a.obj", '<mesh file="a.obj"/>'), ("a.xml", '<model name="a" file="a.xml"/>')):
        with (tmp_path / name).open("wb") as file:
            file.truncate(2**41)
        with pytest.raises(ValueError, match=r"^model: expected .* at most"):
            envs.make(model(tmp_path, what))


def test_real_robots_are_read_as_before(menagerie):
    for scene in sorted(menagerie.glob("*/*.xml")):
        check_model(scene)
        assert mujoco.MjSpec.from_file(str(scene))


def test_no_source_unpickles_or_runs_what_it_read():
    found = {}
    for file in [path for top in ("nil_jax", "envs", "rewards") for path in (SOURCES / top).rglob("*.py")]:
        text = file.read_text()
        for pattern in (
            r"allow_pickle=True",
            r"trust_remote_code\s*=\s*True",
            r"\bpickle\.(load|loads)\b",
            r"(?<!\.)\b(eval|exec)\(",
            r"import (marshal|shelve|dill|joblib|cloudpickle)",
            r"torch\.load",
            r"extractall",
            r"yaml\.",
            r"^import pickle|pickle\.Unpickler",
            r"np\.load\((?!.*allow_pickle=False)",
        ):
            if re.search(pattern, text, re.MULTILINE):
                found.setdefault(file.name, []).append(pattern)
    assert found == {"i3d_weights.py": [r"^import pickle|pickle\.Unpickler"]}
