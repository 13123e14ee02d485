"""What a model may name: files inside its folder, and sizes that a robot has."""

import importlib
import re
import struct
import zipfile
import zlib
from pathlib import Path

import mujoco
import pytest
from conftest import TINY_ROBOT
from PIL import Image

from nil_jax import envs
from nil_jax.envs import registry
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
    (tmp_path / "in" / "sub" / "c").mkdir(parents=True)
    (tmp_path / "in" / "sub" / "b.xml").write_text('<mujoco><include file="c/d.xml"/></mujoco>')
    (tmp_path / "in" / "sub" / "c" / "d.xml").write_text(
        '<mujoco><asset><mesh name="m" file="../../a.obj"/></asset></mujoco>'
    )
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
    # MuJoCo takes "nodir/.." out of a path, and there is no folder `nodir`.
    ('<mesh name="m" file="nodir/../../a.obj"/>', ""),
    ('<mesh name="m" file="/nodir/..{outside}/a.obj"/>', ""),
    ('<mesh name="m" file="a.obj"/>', '<compiler meshdir="nodir/../.."/>'),
    ("", '<include file="nodir/../../part.xml"/>'),
    # b.xml includes c/d.xml, which names ../../a.obj; MuJoCo looks for it from the folder of b.xml.
    ('<model name="b" file="sub/b.xml"/>', ""),
]


@pytest.mark.parametrize(("asset", "compiler"), OUTSIDE)
def test_files_outside_the_folder_are_refused_unless_the_user_allows_them(folder, asset, compiler, monkeypatch):
    path = model(folder, *(text.replace("{outside}", str(folder.parent)) for text in (asset, compiler)))
    with pytest.raises(ValueError, match=f"^model: expected files inside {folder}, got .*; move it there, or allow"):
        envs.make(path)
    monkeypatch.setenv("NIL_JAX_MODEL_ROOT", str(folder.parent))
    check_model(path)


@pytest.mark.parametrize(
    "asset",
    [
        '<mesh name="m" file="li\nk/a.obj"/>',
        "<mesh name='m' file='li\tk/a.obj'/>",
        '<texture name="t" type="cube" fileback = "li\rk/a.png"/>',
        '</asset><compiler meshdir="li\nk"/><asset><mesh name="m" file="a.obj"/>',
        '</asset><include file="li\nk/part.xml"/><asset>',
        '<mesh name="m" file="&#46;./a.obj"/>',
        '<mesh name="m" file="&#233;/a.obj"/>',
    ],
)
def test_a_name_that_two_readers_read_in_two_ways_is_refused(folder, asset):
    """Where MuJoCo finds a link out of the folder, the check would find a folder in it."""
    for link in ("li\nk", "li\tk", "li\rk", "é"):
        (folder / link).symlink_to(folder.parent)
    (folder / "li k").symlink_to(folder / "assets")
    with pytest.raises(ValueError, match=r"^model: expected plain names in .*, got '&#', or a line break or tab"):
        envs.make(model(folder, asset))


@pytest.mark.parametrize(
    ("asset", "compiler"),
    [
        ('<mesh name="m" file="z.zip/a.obj"/>', ""),
        ('<mesh name="m" file="a.obj"/>', '<compiler meshdir="z.MJZ"/>'),
        ("", '<include file="z.zip/part.xml"/>'),
        ('<model name="z" file="z.zip"/>', ""),
        ('<mesh name="m" file="x:/a.obj"/>', ""),  # from the working directory
        ('<mesh name="m" file="a.obj"/>', '<compiler meshdir="x:"/>'),
    ],
)
def test_archives_and_paths_from_the_working_directory_are_refused(folder, asset, compiler):
    for name in ("z.zip", "z.MJZ"):
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("a.obj", CUBE)
            archive.writestr("part.xml", "<mujoco><option/></mujoco>")
            archive.writestr("model.xml", "<mujoco/>")
    with pytest.raises(ValueError, match=r"^model: expected a path without a colon and not in an archive, got "):
        envs.make(model(folder, asset, compiler))


def test_the_working_directory_changes_nothing(folder, monkeypatch):
    """MuJoCo puts the folder of an included file behind that of the model, if the path of the model is relative."""
    (folder / "sub" / "part.xml").write_text('<mujoco><asset><mesh name="m" file="../../../a.obj"/></asset></mujoco>')
    path = model(folder, compiler='<include file="sub/part.xml"/>')
    monkeypatch.chdir(folder.parent)
    with pytest.raises(ValueError, match=r"^model: expected an MJCF that MuJoCo compiles, .*Error opening file"):
        envs.make(path.relative_to(folder.parent))


BOMBS = {
    '<!DOCTYPE b [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]>': "expected no document type",
    '<replicate count="100000"><body/></replicate>': "at most 10000 parts",
    '<replicate count="200">' * 2 + "<body/>" + "</replicate>" * 2: "at most 10000 parts",
    '<replicate count="3000"><body/></replicate>' * 4: "at most 10000 parts",
    "<site/>" * 10_000: "at most 10000 parts",
    "<body>" * 600 + "</body>" * 600: "100 levels",
    '<composite type="cable" count="100000 1 1"/>': "at most 10000 parts",
    '<composite type="cable" count="1000 1 1"/>': "100 levels",
    '<replicate count="200"><composite type="cable" count="200 1 1"/></replicate>': "at most 10000 parts",
    '<flexcomp name="f" type="mesh" file="a.obj"/>': "a robot without soft bodies",
    '<replicate count="inf"><body/></replicate>': "at most 10000 parts",
    '<replicate count="many"><body/></replicate>': "expected numbers in count, got 'many'",
    '<geom size=".1" user="' + "0 " * 200_000 + '"/>' + '<geom size=".1"/>' * 200: "at most 1 GB",
    '<replicate count="1000"><geom size=".1" user="' + "0 " * 100_000 + '"/></replicate>': "at most 1 GB",
    "<body><freejoint/></body>" * 3000 + '</worldbody><size nkey="3000"/><worldbody>': "at most 1 GB",
}


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb[:20])
def test_a_small_file_that_grows_is_refused(tmp_path, bomb):
    path = model(tmp_path, body="" if bomb.startswith("<!") else bomb)
    if bomb.startswith("<!"):
        path.write_text(bomb + path.read_text())
    with pytest.raises(ValueError, match=f"^model: .*{BOMBS[bomb]}"):
        check_model(path)


@pytest.mark.parametrize(
    "asset, body",
    [
        ("", '<include file="b.xml"/>'),
        ('<model name="b" file="b.xml"/>', '<body><attach model="b" body="b" prefix="b"/></body>'),
        ('<model file="b.xml"/>', '<body><attach model="b" body="b" prefix="b"/></body>'),
    ],
)
def test_copies_of_copies_in_another_file_are_counted(tmp_path, asset, body):
    (tmp_path / "b.xml").write_text('<mujoco><replicate count="200"><body name="b"/></replicate></mujoco>')
    check_model(model(tmp_path, asset, body=f'<replicate count="20">{body}</replicate>'))
    with pytest.raises(ValueError, match=r"^model: .*at most 10000 parts"):
        check_model(model(tmp_path, asset, body=f'<replicate count="51">{body}</replicate>'))


def test_what_is_attached_counts_for_its_own_model(tmp_path):
    """Ten models of 500 parts each; the attachments of the one are not copies of the other."""
    (tmp_path / "b.xml").write_text(f'<mujoco><worldbody><body name="b">{"<site/>" * 500}</body></worldbody></mujoco>')
    asset = "".join(f'<model name="{i}" file="b.xml"/>' for i in range(10))
    check_model(model(tmp_path, asset, body="".join(f'<attach model="{i}" body="b" prefix="{i}"/>' for i in range(10))))


def files_deep_in_files(folder):
    """60 files, each included in the 490th body of the one before; MuJoCo 3.17 overflows the stack."""
    for index in range(60):
        inner = f'<include file="{index + 1}.xml"/>' if index < 59 else '<geom size=".1"/>'
        (folder / f"{index}.xml").write_text("<mujoco>" + "<body>" * 490 + inner + "</body>" * 490 + "</mujoco>")
    return model(folder, body='<include file="0.xml"/>')


def files_each_as_deep_as_allowed(folder):
    for index in range(3):
        inner = f'<include file="{index + 1}.xml"/>' if index < 2 else '<geom size=".1"/>'
        (folder / f"{index}.xml").write_text("<mujoco>" + "<body>" * 90 + inner + "</body>" * 90 + "</mujoco>")
    return model(folder, body='<include file="0.xml"/>')


def a_model_of_itself(folder):
    """MuJoCo 3.17 overflows the stack."""
    return model(folder, '<model name="robot" file="robot.xml"/>')


def models_in_models(folder):
    """MuJoCo 3.17 overflows the stack."""
    for index in range(2000):
        (folder / f"{index}.xml").write_text(f'<mujoco><asset><model file="{index + 1}.xml"/></asset></mujoco>')
    (folder / "2000.xml").write_text("<mujoco/>")
    return model(folder, '<model file="0.xml"/>')


def models_that_double(folder):
    """Each attaches the next twice: 2**12 copies of the last."""
    twice = '<attach model="m" body="x" prefix="p"/><attach model="m" body="x" prefix="q"/>'
    for index in range(12):
        (folder / f"{index}.xml").write_text(
            f'<mujoco><asset><model name="m" file="{index + 1}.xml"/></asset>'
            f'<worldbody><body name="x">{twice}</body></worldbody></mujoco>'
        )
    (folder / "12.xml").write_text('<mujoco><worldbody><body name="x"><geom size=".1"/></body></worldbody></mujoco>')
    return model(folder, '<model name="m" file="0.xml"/>', body=twice)


def attachments_in_another_file(folder):
    (folder / "m.xml").write_text(f'<mujoco><worldbody><body name="x">{"<site/>" * 500}</body></worldbody></mujoco>')
    (folder / "a.xml").write_text('<mujoco><asset><model name="m" file="m.xml"/></asset></mujoco>')
    attach = '<replicate count="50"><attach model="m" body="x" prefix="p"/></replicate>'
    return model(folder, compiler='<include file="a.xml"/>', body=attach)


def includes_in_capitals(folder):
    (folder / "b.xml").write_text('<mujoco><replicate count="20000"><site/></replicate></mujoco>')
    return model(folder, body='<INCLUDE file="b.xml"/>')


@pytest.mark.parametrize(
    "grow",
    [
        files_deep_in_files,
        files_each_as_deep_as_allowed,
        a_model_of_itself,
        models_in_models,
        models_that_double,
        attachments_in_another_file,
        includes_in_capitals,
    ],
)
def test_files_that_grow_together_are_refused_before_mujoco_reads_them(tmp_path, grow):
    with pytest.raises(ValueError, match=r"^model: expected at most 10000 parts and 100 levels"):
        check_model(grow(tmp_path))


@pytest.mark.parametrize(
    "asset",
    [
        '<hfield name="h" nrow="100000" ncol="100000" size="1 1 1 1"/>',
        "".join(f'<hfield name="h{i}" nrow="4096" ncol="4096" size="1 1 1 1"/>' for i in range(5)),
        '<texture name="t" type="2d" width="99999" height="99999"/>',
        '<texture name="t" builtin="flat" width="8192"/>',  # a cube with six faces
        "".join(f'<texture name="t{i}" type="2d" width="8192" height="8192"/>' for i in range(30)),
        '<mesh name="m" builtin="plate" params="20000 20000"/>',
        '<mesh name="m" builtin="supersphere" params="20000 1 1"/>',
        '<mesh name="m" builtin="plate" params="nan 1e300"/>',
    ],
)
def test_a_field_too_large_is_refused(tmp_path, asset):
    with pytest.raises(ValueError, match=r"^model: expected fields, textures and tables that take at most 1 GB, got "):
        check_model(model(tmp_path, asset))


@pytest.mark.parametrize(
    ("setting", "what"),
    [
        ('<size nkey="300000"/>', "at most 10000 parts"),
        ('<size nuser_geom="200000000"/>', "at most 1 GB"),
        ('<size nuserdata="400000000"/>', "at most 1 GB"),
        ('<size memory="1T"/>', "at most 1 GB"),
        ('<size memory="1100m"/>', "at most 1 GB"),
        ('<actuator><motor joint="left_hip" delay=".1" nsample="16777216"/></actuator>' * 5, "at most 1 GB"),
        ('<actuator><general joint="left_hip" dyntype="user" actdim="100000000"/></actuator>', "at most 1 GB"),
        ('<compiler><lengthrange mode="all" inttotal="1e9"/></compiler>', "lengthrange of at most 10000 steps"),
        ('<compiler><lengthrange mode="all" timestep="1e-9"/></compiler>', "lengthrange of at most 10000 steps"),
    ],
)
def test_a_setting_that_takes_all_memory_or_time_is_refused(tmp_path, setting, what):
    with pytest.raises(ValueError, match=f"^model: expected .*{what}"):
        check_model(model(tmp_path, compiler=setting))


@pytest.mark.parametrize(
    "sensor",
    [
        '<user dim="400000000"/>',
        '<rangefinder camera="c"/>',
        """<plugin plugin="mujoco.sensor.touch_grid" objtype="site" objname="s"><config key="size" value="20000 20000"/>
        <config key="fov" value="45 45"/><config key="gamma" value="0"/><config key="nchannel" value="3"/></plugin>""",
    ],
)
def test_sensors_take_no_memory(tmp_path, sensor):
    body = '<camera name="c" resolution="20000 20000"/><site name="s"/>'
    plugin = '<extension><plugin plugin="mujoco.sensor.touch_grid"/></extension>'
    path = model(tmp_path, compiler=f"{plugin}<sensor>{sensor}</sensor>", body=body)
    assert not registry._find(str(path))[1].sensors
    assert envs.make(path).action_size == 2


def png(width, height, stored):
    """A PNG of so many pixels by its header, with so many MB of zeros in it."""
    deflate = zlib.compressobj(9)
    data = b"".join(deflate.compress(bytes(2**20)) for _ in range(stored)) + deflate.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"tEXt", b"a\0b"), (b"IDAT", data[:100]), (b"IDAT", data[100:]), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


@pytest.mark.parametrize(
    "asset",
    [
        '<texture name="t" type="2d" file="{}"/>',
        '<texture name="t" type="2d" file="{}" content_type="image/png"/>',
        '<texture name="t" type="cube" fileright="{}"/>',
        '<hfield name="h" size="1 1 1 1" file="{}"/>',
    ],
)
@pytest.mark.parametrize(
    ("size", "stored", "what"), [(14_000, 1, "take at most 1 GB, got 1.46 GB"), (4, 8, "4 x 4 pixels")]
)
def test_a_png_that_grows_is_refused(tmp_path, asset, size, stored, what):
    (tmp_path / "a.bin").write_bytes(png(size, size, stored))
    with pytest.raises(ValueError, match=f"^model: expected .*{what}"):
        check_model(model(tmp_path, asset.format("a.bin")))


@pytest.mark.parametrize("stored", [b"", b"no zlib"])
def test_a_damaged_png_is_refused(tmp_path, stored):
    (tmp_path / "a.png").write_bytes(png(4, 4, 0).replace(zlib.compress(b"", 9), stored)[: 40 + len(stored)])
    with pytest.raises(ValueError, match=r"^(model|robot): "):
        envs.make(model(tmp_path, '<texture name="t" type="2d" file="a.png"/>'))


def test_many_textures_of_one_file_are_counted(tmp_path):
    (tmp_path / "a.png").write_bytes(png(5000, 5000, 1))
    check_model(model(tmp_path, '<texture type="2d" file="a.png"/>' * 5))
    with pytest.raises(ValueError, match=r"^model: expected .* take at most 1 GB"):
        check_model(model(tmp_path, '<texture type="2d" file="a.png"/>' * 6))


def test_files_that_include_each_other_and_sparse_giants_are_refused(tmp_path):
    path = model(tmp_path, compiler='<include file="again.xml"/>')
    (tmp_path / "again.xml").write_text('<mujoco><include file="again.xml"/></mujoco>')
    with pytest.raises(ValueError, match=r"^model: expected at most 10000 parts and 100 levels"):
        envs.make(path)
    for name, size, what in (
        ("a.obj", 2**41, '<mesh file="a.obj"/>'),
        ("a.obj", 2**29 + 1, '<mesh file="a.obj"/>' * 2),
        ("a.xml", 2**41, '<model name="a" file="a.xml"/>'),
    ):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
        with pytest.raises(ValueError, match=r"^model: expected .* at most"):
            envs.make(model(tmp_path, what))


def test_more_places_than_can_be_looked_at_are_refused(tmp_path):
    folders = "".join(f'<compiler meshdir="{i}"/>' for i in range(1000))
    with pytest.raises(ValueError, match=r"^model: expected fewer files and folders"):
        check_model(model(tmp_path, '<mesh file="a.obj"/>' * 101, folders))


@pytest.mark.parametrize("error", [RuntimeError("Caught an unknown\nexception!"), MemoryError("Caught\n")])
def test_what_mujoco_raises_without_memory_is_one_line(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(mujoco.MjSpec, "compile", fail)
    with pytest.raises(ValueError, match=r"^model: expected an MJCF that MuJoCo compiles, got an error: Caught[^\n]*$"):
        envs.make(model(tmp_path))
    monkeypatch.setattr(mujoco.MjSpec, "from_file", fail)
    with pytest.raises(ValueError, match=r"^robot: expected a valid MJCF in .*, got an error: Caught[^\n]*$"):
        envs.make(model(tmp_path))


def test_real_robots_are_read_as_before(menagerie):
    for scene in sorted(menagerie.glob("*/*.xml")):
        check_model(scene)
        assert mujoco.MjSpec.from_file(str(scene))


@pytest.mark.parametrize("package", ["gymnasium", "nil_jax.envs", "mujoco"])
def test_models_of_other_packages_are_read_as_before(package):
    folder = Path(importlib.import_module(package).__file__).parent
    scenes = sorted(folder.rglob("*.xml"))
    assert len(scenes) >= 5
    for scene in scenes:
        check_model(scene)


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
