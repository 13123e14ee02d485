"""Finding, checking and loading video models: what is refused and how, and what is downloaded."""

import json
import shutil
import sys

import diffusers
import huggingface_hub
import numpy as np
import pytest
import tiny_pipelines
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from nil_jax import cli
from nil_jax.reference import GenerateConfig, generate, generate_clip, video_models
from nil_jax.reference.video_models import find_model, load_pipeline

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return tiny_pipelines.save(tiny_pipelines.wan, tmp_path_factory.mktemp("models") / "wan")


@pytest.fixture
def wan(saved, tmp_path):
    """A folder that the test may damage."""
    return shutil.copytree(saved, tmp_path / "wan")


def change_index(folder, **values):
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(message, function, *args, **kwargs):
    """Asserts that the call is refused in one line that holds the message."""
    with pytest.raises(ValueError, match=message) as error:
        function(*args, **kwargs)
    assert "\n" not in str(error.value)


def test_variants_of_one_class_are_told_apart_by_their_settings(tmp_path):
    def family(name):
        return find_model(tiny_pipelines.save(getattr(tiny_pipelines, name), tmp_path / name)).family.name

    assert family("wan") == "Wan 2.1 and 2.2 I2V"
    assert family("wan_text_and_image") == "Wan 2.2 TI2V"
    assert family("cogvideox") == "CogVideoX"
    assert family("cogvideox_1_5") == "CogVideoX 1.5"


def test_a_folder_that_is_no_diffusers_model_is_refused(tmp_path, wan):
    refused("a folder with model_index.json, got", find_model, tmp_path)
    (wan / "model_index.json").write_text("{")
    refused("expected a JSON object", find_model, wan)
    (wan / "model_index.json").write_text("[1]")
    refused("expected a JSON object", find_model, wan)
    for name in ("no-such-folder", str(tmp_path / "nothing"), "./a/b", "a/b/c", "-a/b"):
        refused("expected a folder or a Hugging Face id", find_model, name)


@pytest.mark.parametrize("name", ["WanPipeline", "FluxPipeline", ["pipeline", "MyPipeline"], None])
def test_another_pipeline_is_refused_and_the_possible_ones_are_named(name, wan):
    change_index(wan, _class_name=name)
    refused("image-to-video pipeline .*LTXImageToVideoPipeline.*, got", find_model, wan)


@pytest.mark.parametrize("library", ["my_code", "os", "ltx2"])
def test_parts_with_code_of_their_own_are_refused(library, wan):
    change_index(wan, transformer=[library, "MyTransformer"])
    (wan / "transformer" / f"{library}.py").write_text("raise SystemExit('was run')")
    refused(f"'transformer' from '{library}'; code that comes with a model is not run", find_model, wan)


def test_pickled_weights_are_not_read(wan):
    found = find_model(wan)
    for part in ("transformer", "text_encoder"):
        (weights,) = (wan / part).glob("*.safetensors")
        name = "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"
        torch.save(load_file(weights), wan / part / name)
        kept = weights.read_bytes()
        weights.unlink()
        found.pipeline_class.from_pretrained(wan)  # by itself, diffusers does read them
        refused("with safetensors in", load_pipeline, found, dtype="float32")
        weights.write_bytes(kept)


def test_a_damaged_model_is_refused(wan):
    found = find_model(wan)
    (weights,) = (wan / "vae").glob("*.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    refused("expected a complete WanImageToVideoPipeline", load_pipeline, found, dtype="float32")
    weights.write_bytes(whole)
    shutil.rmtree(wan / "scheduler")
    refused("expected a complete WanImageToVideoPipeline", load_pipeline, found, dtype="float32")


def test_settings_that_decide_the_variant_must_be_readable(tmp_path):
    folder = tiny_pipelines.save(tiny_pipelines.cogvideox, tmp_path / "cogvideox")
    (folder / "transformer" / "config.json").write_text("{")
    refused("expected a JSON object in .*config.json", find_model, folder)


def test_parts_that_need_it_stay_in_float32(saved):
    pipeline = load_pipeline(find_model(saved), dtype="bfloat16")
    found = {name: getattr(pipeline, name).dtype for name in ("transformer", "text_encoder", "vae", "image_encoder")}
    half, full = torch.bfloat16, torch.float32
    assert found == {"transformer": half, "text_encoder": half, "vae": full, "image_encoder": full}


def test_a_clip_of_nan_is_refused(wan):
    (weights,) = (wan / "transformer").glob("*.safetensors")
    tensors = {name: torch.full_like(tensor, torch.nan) for name, tensor in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    found = find_model(wan)
    config = generate._resolved(GenerateConfig(num_frames=5, width=32, height=32, steps=1), found, say=pytest.fail)
    image = Image.new("RGB", (32, 32), "white")
    arguments = generate._arguments(config, found, "walks") | {"image": image}
    pipeline = load_pipeline(found, dtype="float32")
    refused("--dtype float32", generate._run, pipeline, arguments, 0, lambda part: None)


def test_what_the_pipeline_refuses_is_said_in_one_line(saved):
    pipeline = load_pipeline(find_model(saved), dtype="float32")
    arguments = {
        "image": Image.new("RGB", (40, 40), "white"),
        "prompt": "walks",
        "width": 40,
        "height": 40,
        "num_frames": 5,
    }
    refused(
        "WanImageToVideoPipeline takes, got: .*divisible by 16",
        generate._run,
        pipeline,
        arguments,
        0,
        lambda part: None,
    )


@pytest.mark.parametrize(
    ("offload", "method"),
    [("model", "enable_model_cpu_offload"), ("sequential", "enable_sequential_cpu_offload")],
)
def test_offloading_needs_a_gpu_and_asks_the_pipeline_for_it(offload, method, saved, monkeypatch):
    found, asked = find_model(saved), []
    monkeypatch.setattr(video_models, "best_device", lambda: "cpu")
    refused(
        "offload: expected 'none' on a machine without a GPU", load_pipeline, found, dtype="float32", offload=offload
    )
    monkeypatch.setattr(video_models, "best_device", lambda: "cuda")
    monkeypatch.setattr(diffusers.DiffusionPipeline, method, lambda self: asked.append(method))
    pipeline = load_pipeline(found, dtype="float32", offload=offload)
    assert asked == [method] and pipeline.vae.use_tiling


@pytest.mark.parametrize(
    ("name", "value"),
    [("width", 8), ("num_frames", 1), ("steps", 0), ("guidance", -1.0), ("seed", -1), ("num_videos", 0)],
)
def test_settings_out_of_range_are_refused(name, value):
    refused(f"{name}: expected a number from", GenerateConfig, **{name: value})
    for name in ("dtype", "offload"):
        refused(f"{name}: expected one of", GenerateConfig, **{name: "int8"})


def test_without_the_extra_the_message_says_what_to_install(saved, monkeypatch):
    found = find_model(saved)
    for name in ("diffusers", "ftfy"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            refused(r'pip install "nil-jax\[generate\]"', load_pipeline, found, dtype="float32")
            refused(r'pip install "nil-jax\[generate\]"', find_model, "owner/name")


def test_an_id_is_downloaded_without_pickles_and_its_commit_is_noted(saved, tmp_path, monkeypatch):
    snapshot = shutil.copytree(saved, tmp_path / "snapshots" / COMMIT)
    asked = []

    def index(name, file, revision):
        asked.append((name, file, revision))
        return str(snapshot / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", index)
    monkeypatch.setattr(
        diffusers.WanImageToVideoPipeline,
        "download",
        lambda name, **kwargs: asked.append((name, kwargs)) or str(snapshot),
    )
    found = find_model("owner/name@refs/pr/2")
    assert asked == [
        ("owner/name", "model_index.json", "refs/pr/2"),
        ("owner/name", {"revision": "refs/pr/2", "use_safetensors": True}),
    ]
    assert found.identity() == {"revision": COMMIT}
    change_index(snapshot, _class_name="FluxPipeline")
    refused("image-to-video", find_model, "owner/name")
    assert len(asked) == 3  # the index only

    def fail(name, file, revision):
        raise OSError("no network\nat all")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    refused("'owner/name', which is no folder and was not found: no network at all", find_model, "owner/name")
    monkeypatch.undo()
    refused("'owner/a--b', which is no folder and was not found: ", find_model, "owner/a--b")  # is no id of the hub


def test_the_hash_of_a_folder_changes_with_any_file(wan):
    found = find_model(wan)
    first = found.identity()
    assert found.identity() == first and len(first["sha256"]) == 64
    (wan / ".cache").mkdir()
    (wan / ".cache" / "note").write_text("of no account")
    assert found.identity() == first
    tokenizer = wan / "tokenizer" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    assert found.identity() != first


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--model", "{tmp}", "-o", "{tmp}/a.mp4"], "a folder with model_index.json"),
        (["--model", "{wan}", "-o", "{tmp}/a.gif"], "ends in .mp4"),
        (["--model", "{wan}", "-o", "{tmp}/taken.mp4"], "taken.json"),
        (["--model", "{wan}", "-o", "{tmp}/a.mp4", "--steps", "0"], "steps: expected"),
        (["--model", "{wan}", "-o", "{tmp}/a.mp4", "--offload", "model"], "offload: expected 'none'"),
    ],
)
def test_bad_input_gets_one_line_and_leaves_nothing(argv, message, tmp_path, saved, tiny_path, monkeypatch, capsys):
    monkeypatch.setattr(generate, "start_frame", lambda env, size: np.full((size, size, 3), 255, np.uint8))
    monkeypatch.setattr(video_models, "best_device", lambda: "cpu")
    (tmp_path / "taken.json").write_text("{}")
    with pytest.raises(SystemExit) as stop:
        cli.main(["generate", str(tiny_path), *(word.format(tmp=tmp_path, wan=saved) for word in argv)])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and message in " ".join(said.split()) and "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["taken.json"]


def test_a_library_caller_gets_the_same_check_of_the_name(saved, tiny_env, tmp_path):
    refused("ends in .mp4", generate_clip, tiny_env, model=saved, output=tmp_path / "a.json")
