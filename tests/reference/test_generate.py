"""Clips from real pipelines of diffusers with tiny random weights, and what bad models and settings get."""

import dataclasses
import inspect
import json

import diffusers
import numpy as np
import pytest
import tiny_pipelines
from PIL import Image

from nil_jax import cli
from nil_jax.reference import (
    GenerateConfig,
    Video,
    first_look,
    generate,
    generate_clip,
    generate_reference,
    prepare_reference,
    read_video,
    video_models,
    write_video,
)
from nil_jax.reference.families import FAMILIES
from nil_jax.reference.video_models import find_model, load_pipeline

# diffusers' Euler scheduler hands NumPy a tensor in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIDE = 64  # px
SMALL = {"width": 32, "height": 32, "steps": 2}
# Frames of the shortest clip, frames per second, and the side of a small picture that it takes, px.
RULES = {
    "wan": (5, 16, 32),
    "wan_two_experts": (5, 16, 32),
    "wan_text_and_image": (5, 24, 32),
    "ltx": (9, 25, 64),
    "ltx2": (9, 24, 64),
    "cogvideox": (9, 8, 32),
    "cogvideox_1_5": (17, 16, 32),
    "hunyuan": (5, 24, 32),
    "hunyuan_1_5": (5, 24, 32),
    "svd": (2, 7, 64),
}


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A function from the name of a builder to a folder with that model, built once."""
    root = tmp_path_factory.mktemp("models")

    def find(name):
        folder = root / name
        return folder if folder.is_dir() else tiny_pipelines.save(getattr(tiny_pipelines, name), folder)

    return find


@pytest.fixture
def wan(model):
    return model("wan")


@pytest.fixture(scope="module")
def picture():
    """The tiny robot from the side, grey on white: a start frame that costs nothing."""
    image = np.full((SIDE, SIDE, 3), 255, np.uint8)
    for across, height in (((20, 44), (10, 26)), ((28, 36), (26, 52)), ((19, 45), (52, 60))):  # trunk, leg, foot
        image[slice(*height), slice(*across)] = 90
    return image


@pytest.fixture
def drawn(picture, monkeypatch):
    """Generation begins with `picture`."""
    monkeypatch.setattr(
        generate, "start_frame", lambda env, size: np.asarray(Image.fromarray(picture).resize((size, size)))
    )


def run(*argv):
    """The exit code of a command."""
    try:
        cli.main([str(word) for word in argv])
    except SystemExit as stop:
        return stop.code or 0
    return 0


@pytest.mark.parametrize("name", RULES)
def test_each_family_writes_a_clip_and_how_it_was_made(name, model, tiny_env, drawn, tmp_path):
    frames, fps, side = RULES[name]
    stages = []
    clip = generate_clip(
        tiny_env,
        model=model(name),
        output=tmp_path / "walk.mp4",
        width=side,
        height=side,
        num_frames=frames,
        steps=2,
        seed=3,
        progress=lambda stage, part: stages.append((stage, part)),
        say=lambda line: None,
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["walk.json", "walk.mp4"]
    assert clip.fps == pytest.approx(fps, rel=1e-3)
    made = json.loads((tmp_path / "walk.json").read_text())
    assert clip.frames.shape == (frames, made["height"], made["width"], 3)
    assert (made["num_frames"], made["fps"], made["seed"], made["steps"]) == (frames, fps, 3, 2)
    assert made == clip.origin and made["sha256"] == clip.sha256
    asked = None if name == "svd" else "The robot agent is walking, camera follows the agent."
    assert made["prompt"] == asked
    assert made["versions"]["diffusers"] == diffusers.__version__
    if name != "hunyuan_1_5":  # which reports nothing and chooses its size
        assert (made["width"], made["height"]) == (side, side)
        assert [part for stage, part in stages if stage == "clip 1 of 1"] == [0.0, 0.5, 1.0]


def test_the_same_seed_gives_the_same_clip(wan, tiny_env, drawn, tmp_path):
    def frames(seed):
        output = tmp_path / "a.mp4"
        return generate_clip(tiny_env, model=wan, output=output, num_frames=5, seed=seed, **SMALL).frames

    first = frames(1)
    np.testing.assert_array_equal(frames(1), first)
    assert (frames(2) != first).any()


def test_prompt_guidance_steps_and_seed_each_change_the_clip(wan, picture):
    found = find_model(wan)
    pipeline = load_pipeline(found, dtype="float32")

    def frames(prompt="walks", seed=0, **settings):
        config = generate._resolved(GenerateConfig(num_frames=5, **SMALL | settings), found, say=pytest.fail)
        arguments = generate._arguments(config, found, prompt) | {"image": Image.fromarray(picture)}
        return generate._run(pipeline, arguments, seed, report=lambda part: None)

    first = frames()
    np.testing.assert_array_equal(frames(), first)
    for other in (frames("JUMPS"), frames(seed=1), frames(negative_prompt="blur"), frames(guidance=1), frames(steps=3)):
        assert (other != first).any()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_arguments_are_those_that_the_installed_pipeline_has(family, tmp_path):
    unet = tmp_path / "unet"
    unet.mkdir()
    (unet / "config.json").write_text('{"num_frames": 25}')
    found = video_models.VideoModel("model", tmp_path, {}, family)
    config = GenerateConfig(negative_prompt="blur", guidance=2.0)
    config = generate._resolved(config, found, say=lambda line: None)
    arguments = generate._arguments(config, found, "walk" if family.prompt else None)
    call = found.pipeline_class.__call__
    bound = inspect.signature(call).bind(None, image=None, generator=None, **arguments).arguments
    assert all(bound[name] == 2.0 for name in family.guidance)
    assert (bound.get("prompt") == "walk") == family.prompt
    assert (bound.get("negative_prompt") == "blur") == family.negative_prompt
    # The table's own values keep its rules.
    assert (config.width, config.height) == family.size
    assert config.num_frames == family.nearest_frames(config.num_frames)


def test_sizes_and_lengths_that_a_model_does_not_take_go_to_the_nearest_with_a_line(wan, tiny_env, drawn, tmp_path):
    lines = []
    clip = generate_clip(
        tiny_env, model=wan, output=tmp_path / "a.mp4", width=37, height=32, num_frames=6, steps=1, say=lines.append
    )
    assert clip.frames.shape == (5, 32, 32, 3)
    assert lines == [
        "width: Wan 2.1 and 2.2 I2V takes multiples of 16; 32 instead of 37",
        "num_frames: Wan 2.1 and 2.2 I2V takes k * 4 + 1; 5 instead of 6",
    ]


def test_the_nearest_sizes_and_lengths_are_these():
    rows = {family.name: family for family in FAMILIES}
    ltx, svd, cogvideox = rows["LTX-Video"], rows["Stable Video Diffusion"], rows["CogVideoX"]
    assert [ltx.nearest_frames(n) for n in (2, 9, 12, 14, 121)] == [9, 9, 9, 17, 121]
    assert [cogvideox.nearest_frames(n) for n in (5, 49, 60)] == [9, 49, 57]
    assert [svd.nearest_frames(n) for n in (2, 25)] == [2, 25]
    assert [ltx.nearest_side(n) for n in (1, 47, 49, 500)] == [32, 32, 64, 512]


def test_what_a_family_does_not_take_is_said(model, tiny_env, drawn, tmp_path):
    lines = []
    generate_clip(
        tiny_env,
        "walks",
        model=model("svd"),
        output=tmp_path / "a.mp4",
        num_frames=2,
        negative_prompt="blur",
        width=64,
        height=64,
        steps=1,
        say=lines.append,
    )
    assert [line.split(":")[0] for line in lines] == ["negative_prompt", "prompt"]
    found = find_model(model("svd"))
    assert found.usual_frames == 7  # as its network says
    assert generate._resolved(GenerateConfig(), found, lines.append).num_frames == 7


def test_the_start_frame_stands_in_the_middle_on_white(picture):
    wide = generate.framed(picture, 2 * SIDE, SIDE)
    np.testing.assert_array_equal(wide[:, SIDE // 2 : -SIDE // 2], picture)
    assert (wide[:, : SIDE // 2] == 255).all() and (wide[:, -SIDE // 2 :] == 255).all()
    np.testing.assert_array_equal(generate.framed(picture, SIDE, SIDE + 10)[5:-5], picture)


def test_of_several_clips_the_best_is_kept_and_all_are_listed(wan, tiny_env, drawn, tmp_path):
    seen, lines = [], []

    def rank(env, video):
        assert env is tiny_env
        seen.append(video.frames)
        if len(seen) == 1:
            raise ValueError("no robot")
        return {"score": {2: 0.7, 3: 0.4}[len(seen)], "other": 1}

    output = tmp_path / "new" / "walk.mp4"
    settings = {"num_frames": 5, "num_videos": 3, "seed": 5} | SMALL
    clip = generate_clip(tiny_env, model=wan, output=output, rank=rank, say=lines.append, **settings)
    np.testing.assert_array_equal(clip.frames, seen[1])
    assert clip.origin["seed"] == 6
    assert clip.origin["clips"] == [
        {"seed": 5, "score": 0.0, "refused": "no robot"},
        {"seed": 6, "score": 0.7, "other": 1.0},
        {"seed": 7, "score": 0.4, "other": 1.0},
    ]
    assert sorted(path.name for path in output.parent.iterdir()) == ["walk.json", "walk.mp4"]
    assert lines == ["clip 1 of 3 gets a zero: no robot"]
    assert (seen[0] != seen[1]).any() and (seen[1] != seen[2]).any()


@pytest.mark.slow
def test_a_robot_that_keeps_its_shape_is_ranked_above_one_that_melts(tiny_env, picture):
    still = np.stack([picture] * 8)
    good = first_look(tiny_env, Video(still, 25.0))
    assert good["score"] > 0.7 and good["first_frame"] > 0.6 and good["bulk"] > 0.99
    melting = still.copy()
    top, bottom = np.flatnonzero((picture < 128).any((1, 2)))[[0, -1]]
    for t, cut in enumerate(np.linspace(bottom + 1, (top + bottom) // 2, len(melting)).astype(int)):
        melting[t, cut:] = 255
    bad = first_look(tiny_env, Video(melting, 25.0))
    assert bad["score"] < good["score"] - 0.2


@pytest.mark.slow
def test_a_reference_knows_how_its_clip_was_generated(wan, tiny_env, picture, drawn, tmp_path, monkeypatch):
    # Tiny random weights draw no robot: what the pipeline returns is replaced, all else is real.
    monkeypatch.setattr(generate, "_run", lambda pipeline, arguments, seed, report: np.stack([picture] * 8))
    made = generate_reference(
        tiny_env, "stands", model=wan, output=tmp_path / "a.mp4", seed=4, frame_size=32, track=False, **SMALL
    )
    made.check_robot(tiny_env)
    assert made.frames.shape[1:] == (32, 32, 3) and made.provenance["first_frame_iou"] > 0.8
    assert made.provenance["generated"] == json.loads((tmp_path / "a.json").read_text())
    assert (made.provenance["generated"]["prompt"], made.provenance["generated"]["seed"]) == ("stands", 4)
    with pytest.raises(ValueError, match="mask_size: expected"):
        generate_reference(tiny_env, model=wan, mask_size=4)


def test_the_note_beside_a_clip_counts_only_for_that_clip(picture, tmp_path):
    path = tmp_path / "walk.mp4"
    write_video(path, np.stack([picture] * 3), 25.0)
    digest = read_video(path).sha256
    for text, expected in {
        json.dumps({"sha256": digest, "seed": 1}): {"sha256": digest, "seed": 1},
        json.dumps({"sha256": "0" * 64}): {},
        json.dumps([digest]): {},
        "[" * 200_000: {},
        "{": {},
    }.items():
        (tmp_path / "walk.json").write_text(text)
        assert read_video(path).origin == expected


def test_a_clip_without_a_robot_is_refused_when_it_is_prepared(wan, tiny_env, drawn, tmp_path):
    generate_clip(tiny_env, model=wan, output=tmp_path / "noise.mp4", num_frames=5, **SMALL)
    with pytest.raises(ValueError, match="segment: expected a robot"):
        prepare_reference(tiny_env, tmp_path / "noise.mp4")


def test_the_command_writes_the_clip_and_says_what_to_type_next(wan, tiny_path, tmp_path, capsys):
    flags = ["--width", 32, "--height", 32, "--steps", 2, "--num-frames", 5, "--seed", 2]
    output = tmp_path / "walk.mp4"
    assert run("generate", tiny_path, "--model", wan, "-o", output, "--prompt", "It walks", *flags) == 0
    assert json.loads((tmp_path / "walk.json").read_text())["prompt"] == "It walks"
    assert f"nil-jax prepare {tiny_path} {output}" in capsys.readouterr().err
    assert run("generate", tiny_path, "--model", wan, "-o", output, *flags) == 2
    assert "not taken" in capsys.readouterr().err


def test_clips_are_ranked_with_the_settings_that_they_are_prepared_with(tiny_env, tiny_reference, monkeypatch):
    prepared, clip = [], Video(np.zeros((2, 16, 16, 3), np.uint8), 25.0)
    verdict = {"verdict": {"score": 0.5, "parts": {}}}

    def prepare(env, video, **settings):
        prepared.append(settings)
        return dataclasses.replace(tiny_reference, provenance=tiny_reference.provenance | verdict)

    monkeypatch.setattr(generate, "prepare_reference", prepare)
    monkeypatch.setattr(generate, "generate_clip", lambda env, *_, rank, **settings: rank(env, clip) and clip)
    generate.generate_reference(tiny_env, model="any", speed=2.0, segmenter="sam2")
    ranking, preparing = prepared
    assert all(settings["speed"] == 2.0 and settings["segmenter"] == "sam2" for settings in prepared)
    assert ranking["mask_size"] == generate.RANKING_SIDE and "mask_size" not in preparing
    assert not ranking["track"] and "track" not in preparing  # which takes minutes, and no part of the verdict asks for
