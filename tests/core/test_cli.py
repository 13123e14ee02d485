"""The commands, from end to end on a tiny robot, and what bad input gets."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from short_run import TRAIN_FLAGS

import nil_jax
from nil_jax import cli
from nil_jax.reference import read_video, write_video


def run(*argv: str) -> int:
    """The exit code of a command."""
    try:
        cli.main([str(word) for word in argv])
    except SystemExit as stop:
        return stop.code or 0
    return 0


@pytest.fixture(scope="module")
def trained(tiny_path, clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert run("train", tiny_path, clip, "-o", folder, *TRAIN_FLAGS) == 0
    return folder


def test_robots_prints_one_json_object(capsys):
    assert run("robots", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    embedded = {name: robot["body"] for name, robot in found.items() if robot["source"] == "embedded"}
    humanoids, quadrupeds = ("talos", "unitree_g1", "unitree_h1"), ("ant", "unitree_a1")
    assert embedded == dict.fromkeys(humanoids, "humanoid") | dict.fromkeys(quadrupeds, "quadruped")
    assert "menagerie:unitree_h1" in found


def test_frame_writes_the_robot_on_white(tmp_path, capsys):
    assert run("frame", "unitree_a1", "-o", tmp_path / "a[1].png", "--size", "96") == 0
    assert capsys.readouterr().err == f"wrote {tmp_path / 'a[1].png'}\n"
    image = np.asarray(Image.open(tmp_path / "a[1].png"))
    assert image.shape == (96, 96, 3) and (image[0] == 255).all()
    assert 0.05 < (image < 250).any(axis=-1).mean() < 0.5


def test_prepare_makes_a_reference_and_tells_how_good_it_is(tiny_path, clip, tmp_path, monkeypatch, capsys):
    made = tmp_path / "swing.ref"
    feet, sizes = ("--feet", "left", "right"), ("--mask-size", "32", "--frame-size", "32")
    assert run("prepare", tiny_path, clip, "-o", made, *feet, *sizes, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ticks"] == 21 and report["first_frame_iou"] > 0.8
    assert report["verdict"] == "good" and 0.7 < report["score"] < 1 and "at worst" in report["reason"]
    assert report["parts"]["limbs"] == 1.0
    speed = nil_jax.Reference.load(made).travel_speed
    assert report["travel_speed"] == speed
    assert (made / "preview.mp4").stat().st_size > 1000
    # What it tells people of the same reference, which is not fitted once more.
    monkeypatch.setattr("nil_jax.reference.prepare_reference", lambda *_, **__: nil_jax.Reference.load(made))
    assert run("prepare", tiny_path, clip, "-o", tmp_path / "a[b].ref") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "a[b].ref: 21 ticks at 25 per second, first-frame IoU" in said
    assert f"travel at {speed:.2f} m/s; look at" in said
    assert "a[b].ref: good as a reference (score 0." in said


def test_version_is_that_of_the_package(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out == f"nil_jax {nil_jax.__version__}\n"


def test_eval_repeats_the_evaluation_of_the_run(trained, capsys):
    assert run("eval", trained, "--num-envs", "2", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    for name, expected in json.loads((trained / "evaluation.json").read_text()).items():
        assert rows[name] == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_render_writes_three_panels(trained, tmp_path):
    assert run("render", trained, "-o", tmp_path / "out.mp4", "--size", "64") == 0
    frames = read_video(tmp_path / "out.mp4").frames
    assert frames.shape[2] == 3 * 64 and 64 < frames.shape[1] < 100
    clip, agent, _ = np.split((frames[0, -64:] < 200).any(axis=-1), 3, axis=1)
    assert (clip & agent).sum() > 0.7 * (clip | agent).sum()  # the episode begins as the clip does


def test_export_writes_a_policy_that_needs_no_library(trained, tmp_path):
    assert run("export", trained, "-o", tmp_path / "policy") == 0
    assert {path.name for path in (tmp_path / "policy").iterdir()} == {"policy.stablehlo", "policy.json", "model.xml"}
    assert run("export", trained, "-o", tmp_path / "policy") == 2


def test_an_output_that_cannot_be_written_is_refused_before_the_work(tiny_path, clip, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
    assert run("prepare", tiny_path, clip, "-o", tmp_path / "walk.ref") == 2
    assert "expected a folder that may be written" in " ".join(capsys.readouterr().err.split())


def test_a_full_disk_is_told_in_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.guarded(lambda: Path("/dev/full").write_text("more than fits"), "nil-jax")
    assert stop.value.code == 2 and capsys.readouterr().err == "nil-jax: [Errno 28] No space left on device\n"


def test_a_folder_of_frames_is_trained_on_at_its_rate(tiny_path, tmp_path, monkeypatch, capsys):
    (tmp_path / "frames").mkdir()
    seen = {}
    monkeypatch.setattr(nil_jax, "train", lambda env, video, **settings: seen.update(settings))
    command = "train", tiny_path, tmp_path / "frames", "-o", tmp_path / "run", *TRAIN_FLAGS
    assert run(*command, "--source-fps", "12.5") == 0 and seen["source_fps"] == 12.5
    monkeypatch.undo()
    assert run(*command) == 2
    assert "type --source-fps 30" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "unitree_h2", "x.mp4", "-o", "{tmp}/run"], "nearest: unitree_h1"),
        (["train", "{tiny}", "{tmp}/missing.mp4", "-o", "{tmp}/run"], "nothing there"),
        (["prepare", "{tiny}", "{tmp}/text.mp4", "-o", "{tmp}/run"], "text.mp4"),
        (["prepare", "{tiny}", "{tmp}/blank.mp4", "-o", "{tmp}/run"], "uniform background"),
        (["train", "{tiny}", "{clip}", "-o", "{tmp}"], "choose another folder"),
        (["train", "{tmp}/broken.xml", "{clip}", "-o", "{tmp}/run"], "valid MJCF"),
        (["train", "{tiny}", "{clip}", "-o", "{tmp}/run", "--gamma", "1.5"], "gamma: expected"),
        (["train", "{tiny}", "{clip}", "-o", "{tmp}/run", "--encoder", "{tmp}/none"], "encoder: expected"),
        (["train", "{tiny}", "{clip}", "-o", "{tmp}/run", "--ctrl-dt", "0.016"], "--fps 31.25"),
        (["train", "{tiny}", "{clip}", "-o", "{trained}", "--resume", "--gamma", "0.5"], "start a new run"),
        (["train", "unitree_a1", "{ref}", "-o", "{tmp}/run"], "got one for tiny"),
        (["eval", "{tmp}"], "run.json"),
        (["render", "{trained}", "-o", "{tmp}/text.mp4"], "not taken"),
        (["frame", "unitree_a1", "-o", "{tmp}/new.png", "--size", "2"], "16 to 4096"),
        (["render", "{trained}", "-o", "{tmp}/new.mp4", "--size", "2"], "16 to 4096"),
        (["eval", "{trained}", "--num-envs", "0"], "num_envs: expected an integer >= 1"),
        (["train", "{tiny}", "{ref}", "-o", "{tmp}/run", "--speed", "3"], "the reference is prepared"),
        (["train", "{tiny}", "{clip}", "-o", "{tmp}/run", "--num-devices", "0"], "num_devices: expected an integer"),
        (
            ["train", "{tiny}", "{ref}", "-o", "{tmp}/run", "--source-fps", "30"],
            "source_fps: expected it beside a clip",
        ),
        (["train", "{tiny}", "{tmp}/{long}.mp4", "-o", "{tmp}/run"], "File name too long"),
        (["prepare", "{tiny}", "{clip}", "-o", "{tmp}/new", "--encoder-pooling", "mean"], "expected --encoder beside"),
        (["prepare", "{tiny}", "{clip}", "-o", "{tmp}/new", "--segmenter-model", "x/y"], "it with --segmenter sam2"),
        (["prepare", "{tiny}", "{clip}", "-o", "{tmp}/new", "--segmenter", "sam2", "--masks", "{clip}"], "given masks"),
        (["prepare", "{tiny}", "{clip}", "-o", "{tmp}/new", "--fps", "1000", "--speed", "0.1"], "at most 6000 ticks"),
        (["frame", "unitree_a1", "-o", "{tmp}/new.txt"], "ends in .png"),
        (["frame", "{tiny}", "-o", "{tmp}/new.png", "--feet", "hand"], "feet: expected names of bodies"),
        (["render", "{trained}", "-o", "{tmp}/new.gif"], "ends in .mp4"),
        (["train", "{tiny}", "{blank}", "-o", "{trained}", "--resume", *TRAIN_FLAGS], "the clip that the run began"),
        (["train", "{tiny}", "{clip}", "-o", "{tmp}/run", "--num-timesteps", "1000"], "learning_starts: expected"),
    ],
)
def test_bad_input_gets_a_clear_message_and_leaves_nothing(argv, message, tmp_path, tiny_path, clip, trained, capsys):
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "broken.xml").write_text("<mujoco")
    write_video(tmp_path / "blank.mp4", np.full((5, 64, 64, 3), 255, np.uint8), 25.0)
    before = sorted(path.name for path in tmp_path.iterdir())
    places = {
        "tmp": tmp_path,
        "blank": tmp_path / "blank.mp4",
        "tiny": tiny_path,
        "clip": clip,
        "trained": trained,
        "ref": trained / "reference",
        "long": "x" * 300,
    }
    capsys.readouterr()
    code = run(*[word.format(**places) for word in argv])
    printed = capsys.readouterr()
    assert code == 2 and printed.out == ""
    assert message in " ".join(printed.err.split())
    assert "Traceback" not in printed.err
    assert sorted(path.name for path in tmp_path.iterdir()) == before
