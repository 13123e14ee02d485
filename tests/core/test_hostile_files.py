"""Files that are damaged, or made to hurt: each is read as it was meant, or refused in one line by this package.

`NIL_JAX_FUZZ` says how many cases each kind of file gets in the slow test.
"""

import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY_ROBOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from nil_jax import cli, pretrained
from nil_jax.checkpoint import Checkpoints
from nil_jax.config import Config, load_config, save_config
from nil_jax.files import read_archive, read_json, read_tensors
from nil_jax.metrics import read_metrics
from nil_jax.reference import Reference, read_video
from nil_jax.report import curves
from nil_jax.rewards import load_encoder
from nil_jax.rewards.student import Student, StudentConfig, save_student
from nil_jax.rewards.timesformer import TimesformerConfig, tensor_shapes
from nil_jax.run import SavedRun

CASES = 60  # of each kind in the fast test
FEWER = {"checkpoint": 20, "student": 6}  # these take longer: a network is traced for each
MANY = int(os.environ.get("NIL_JAX_FUZZ", "12500"))
SECONDS = 60  # one case may take them, on a busy machine; the usual one takes hundredths
GIGABYTE = 2**30
TIMESFORMER = {
    "model_type": "timesformer",
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "image_size": 16,
    "patch_size": 8,
    "num_frames": 2,
}
STUDENT = StudentConfig(16, 8, 8, 1, 2, 8, 3, 4, 5)
STATE = {"w": np.arange(96, dtype=np.float32).reshape(8, 12), "n": np.int32(7), "key": None}
WORDS = [b"1e999", b"NaN", b"-1", b"null", b"[]", b"{}", b"true", b'"a"', b"99999999999999999999", b"../", b"\xff\xfe"]


def make_reference(folder):
    from nil_jax.rendering import side_camera

    rng = np.random.default_rng(0)
    masks = np.ones((3, 8, 8), bool)
    frames = rng.integers(0, 255, (3, 16, 16, 3), np.uint8)
    pose = np.zeros(9, np.float32)
    made = {"robot": "tiny", "fingerprint": "0" * 16}
    Reference(frames, masks, 25.0, side_camera(2.0, 0.3, focal=2.5), pose, False, {}, made).save(folder)


def make_checkpoint(folder):
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, {"learner": _state()})
    checkpoints.close()


def _state():
    return {"w": jnp.asarray(STATE["w"]), "n": jnp.int32(7), "key": jax.random.key(3)}


def read_checkpoint(folder):
    checkpoints = Checkpoints(folder)
    try:
        return np.asarray(checkpoints.restore({"learner": _state()})["learner"]["w"])
    finally:
        checkpoints.close()


def make_policy(folder):
    folder.mkdir()
    about = {"format": pretrained.FORMAT, "robot": "tiny", "fingerprint": "0", "fps": 25.0, "loop": False}
    about |= {"source": {}, "steps": 3, "evaluation": {}, "versions": {}}
    camera = {"position": np.zeros(3), "rotation": np.eye(3), "focal": np.array(1.0), "center": np.zeros(2)}
    tensors = {f"camera/{name}": value.astype(np.float32) for name, value in camera.items()}
    tensors |= {"motion": np.zeros((3, 9), np.float32), "start_qpos": np.zeros(9, np.float32)}
    save_file(tensors, folder / pretrained.WEIGHTS)
    (folder / pretrained.ABOUT).write_text(json.dumps(about))


def make_student(folder):
    clip = jnp.zeros((1, 3, 16, 16, 3), jnp.uint8)
    save_student(folder, STUDENT, Student(STUDENT).init(jax.random.key(0), clip)["params"], {"robots": {"a": "b"}})


def make_timesformer(folder):
    folder.mkdir()
    shapes = tensor_shapes(TimesformerConfig.from_hf(TIMESFORMER))
    save_file({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(TIMESFORMER))
    names = dict.fromkeys(shapes, "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def make_run(folder):
    folder.mkdir()
    save_config(Config(), folder / "config.json")
    (folder / "run.json").write_text('{"renderer": "jax", "robot": "unitree_a1", "fingerprint": "0"}')
    (folder / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n{"step": 2, "reward": null}\n')


def read_run(folder):
    read_metrics(folder)
    return SavedRun.load(folder)


KINDS = {  # what makes a folder, and what reads it
    "reference": (make_reference, Reference.load),
    "checkpoint": (make_checkpoint, read_checkpoint),
    "policy": (make_policy, pretrained._read),
    "student": (make_student, load_encoder),
    "timesformer": (make_timesformer, load_encoder),
    "run": (make_run, read_run),
}


def mutated(data: bytes, rng) -> bytes:
    """Damaged in one of many ways, now and then in two."""
    data = bytearray(data)
    for _ in range(1 + (rng.random() < 0.3)):
        at, length = int(rng.integers(len(data) + 1)), int(rng.integers(1, 33))
        match rng.integers(7):
            case 0:
                for place in rng.integers(0, max(1, len(data)), min(length, len(data))):
                    data[place] ^= 1 << int(rng.integers(8))
            case 1:
                del data[at:]
            case 2:
                data[at : at + length] = rng.bytes(length)
            case 3:
                data[at:at] = data[max(0, at - length) : at] * int(rng.integers(1, 4))
            case 4:
                data[at : at + length] = bytes(len(data[at : at + length]))
            case 5:
                data[at : at + length] = WORDS[rng.integers(len(WORDS))]
            case 6:
                del data[at : at + length]
    return bytes(data)


def outcome(read, *arguments):
    """What reading gives, or None where it is refused as it should be; anything else fails."""
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail(f"took more than {SECONDS} s"))
    signal.alarm(SECONDS)
    try:
        return read(*arguments)
    except (ValueError, OSError) as error:
        assert cli._is_ours(error) and "\n" not in str(error), repr(error)
        return None
    finally:
        signal.alarm(0)


def fuzz(kind, tmp_path, cases, seed=0):
    make, read = KINDS[kind]
    rng, folder = np.random.default_rng(seed), tmp_path / "made"
    make(folder)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    whole, refused = {file: file.read_bytes() for file in files}, 0
    assert outcome(read, folder) is not None
    for _ in range(cases):
        file = files[rng.integers(len(files))]
        file.write_bytes(mutated(whole[file], rng))
        found = outcome(read, folder)
        refused += found is None
        if kind == "checkpoint" and found is not None:
            np.testing.assert_array_equal(found, STATE["w"])
        if kind == "checkpoint":  # reading removes what it takes for unfinished
            shutil.rmtree(folder)
            for path, data in whole.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        file.write_bytes(whole[file])
    return refused


def fuzz_alone(kind, tmp_path, cases, seed=0):
    """In a process of its own: reads of damaged checkpoints stay unfinished, and Python says so at any later moment."""
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, __file__, kind, str(tmp_path), str(cases), str(seed)],
        env=os.environ | {"PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return int(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_read_or_refused(kind, tmp_path):
    assert fuzz_alone(kind, tmp_path, FEWER.get(kind, CASES)) > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_files_are_read_or_refused(kind, tmp_path):
    print(kind, fuzz_alone(kind, tmp_path, MANY, seed=1))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_settings_of_any_type_are_read_or_refused(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "config.json"
    save_config(Config(), path)
    whole = json.loads(path.read_text())
    part = data.draw(st.sampled_from(sorted(whole)))
    name = data.draw(st.sampled_from(sorted(whole[part])))
    whole[part][name] = data.draw(JSON)
    path.write_text(json.dumps(data.draw(st.sampled_from([whole, whole[part], whole[part][name]]))))
    outcome(load_config, path)


def test_settings_that_nest_or_grow_without_end_are_refused(tmp_path):
    path = tmp_path / "config.json"
    for text in ("[" * 100_000, '{"a":' * 100_000, "9" * 10_000):
        path.write_text(text)
        assert outcome(read_json, path, "config") is None
    with path.open("wb") as file:
        file.truncate(2**40)
    assert outcome(read_json, path, "config") is None


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("train", "num_envs", 2**40),
        ("env", "episode_length", 2**53),
        ("env", "ctrl_dt", 1e300),
        ("env", "sim_dt", 1e-300),
        ("learner", "actor_hidden", [10**9]),
        ("learner", "critic_hidden", [1] * 100_000),
        ("learner", "n_step", 2**50),
        ("learner", "replay_size", 2**53),
    ],
)
def test_settings_that_would_take_the_machine_are_refused(tmp_path, part, name, value):
    path = tmp_path / "config.json"
    save_config(Config(), path)
    whole = json.loads(path.read_text())
    whole[part][name] = value
    path.write_text(json.dumps(whole))
    assert outcome(load_config, path) is None


@pytest.mark.parametrize(
    ("kind", "name"),
    [("policy", pretrained.WEIGHTS), ("policy", pretrained.ABOUT), ("run", "run.json"), ("checkpoint", "_METADATA")],
)
def test_a_pipe_in_place_of_a_file_does_not_hold_up_the_reader(tmp_path, kind, name):
    make, read = KINDS[kind]
    make(tmp_path / "made")
    (file,) = (path for path in (tmp_path / "made").rglob(name) if path.parent.name in ("made", "learner"))
    file.unlink()
    os.mkfifo(file)
    assert outcome(read, tmp_path / "made") is None


def test_a_pipe_in_place_of_metrics_is_no_metrics(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    assert outcome(read_metrics, tmp_path) == []


def test_rows_that_no_run_writes_are_left_out(tmp_path):
    rows = ['{"step": 1, "reward/mask": {"a": 1}}', f'{{"step": {10**400}}}', '{"step": 2, "a": null, "b": 0.5}']
    (tmp_path / "metrics.jsonl").write_text("\n".join(rows))
    assert read_metrics(tmp_path) == [{"step": 2, "a": None, "b": 0.5}]


def test_names_of_curves_are_no_formulas():
    assert curves([{"step": 1, "reward/$\\frac$": 1.0}], [("reward/$\\frac$", "$\\frac$")]) is not None


def test_what_is_larger_than_anything_real_is_refused_before_it_is_read(tmp_path):
    """Files with holes, which cost their maker nothing."""
    for name, read in (("a.safetensors", lambda path: read_tensors(path, "policy")), ("a.mp4", read_video)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(2**40)
        assert outcome(read, tmp_path / name) is None
    with pytest.raises(ValueError, match="video: expected a file of at most 4 GB"):
        read_video(tmp_path / "a.mp4")


def test_an_array_with_a_long_header_is_refused(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_2_0(header, {"descr": "<f4", "fortran_order": False, "shape": ()})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", header.getvalue() + bytes(4))
    with pytest.raises(ValueError, match="first version of NumPy's format"):
        read_archive(tmp_path / "a.npz")


@pytest.mark.parametrize("made", [{"verdict": {}}, {"tempo": {}}, {"first_frame_iou": "x"}])
def test_a_reference_says_of_itself_what_can_be_told(tmp_path, made):
    make_reference(tmp_path / "made")
    path = tmp_path / "made" / "reference.json"
    settings = json.loads(path.read_text())
    settings["provenance"] |= made
    path.write_text(json.dumps(settings))
    assert outcome(Reference.load, tmp_path / "made") is None


def test_terminals_get_no_commands_from_names(tmp_path, capsys):
    make_policy(tmp_path / "made")
    save_file(
        {"\x1b]0;taken\x07\nnil-jax: all is well": np.zeros(1, np.float32)}, tmp_path / "made" / pretrained.WEIGHTS
    )
    with pytest.raises(SystemExit) as stopped:
        cli.guarded(lambda: pretrained._read(tmp_path / "made"), "nil-jax")
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and "\\x1b]0;taken\\x07\\nnil-jax" in said
    assert "\x1b" not in said and said.count("\n") == 1


def test_too_little_memory_is_told_in_one_line(capsys):
    def fail():
        raise MemoryError("Unable to allocate 9 EiB\nfor an array")

    with pytest.raises(SystemExit) as stopped:
        cli.guarded(fail, "nil-jax")
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.count("\n") == 1 and "memory: expected" in said and "9 EiB" in said


# Reads what standard input names, one a line, in little address space; what happens goes to standard output.
READER = """
import json, resource, signal, sys
from pathlib import Path
from nil_jax import cli, envs, pretrained
from nil_jax.reference import Reference
from nil_jax.rewards import load_encoder
readers = {"reference": Reference.load, "policy": pretrained._read, "timesformer": load_encoder, "model": envs.make}
envs.make("unitree_a1")
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]),) * 2)
for line in sys.stdin.read().splitlines():
    kind, path = line.split("\\t")
    print(line, file=sys.stderr)
    signal.alarm(int(sys.argv[2]))
    try:
        readers[kind](Path(path))
        said = "read"
    except (ValueError, OSError) as error:
        said = "refused" if cli._is_ours(error) and "\\n" not in str(error) else f"not ours: {error!r}"
    except BaseException as error:
        said = f"not ours: {error!r}"
    signal.alarm(0)
    print(json.dumps([path, said]), flush=True)
"""


def read_all(tmp_path: Path, named: list[tuple[str, Path]]) -> dict[str, str]:
    """What happened to each, in a process that may take a gigabyte more."""
    lines = "\n".join(f"{kind}\t{path}" for kind, path in named)
    done = subprocess.run(
        [sys.executable, "-c", READER, str(GIGABYTE), str(SECONDS)],
        input=lines,
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    found = dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))
    assert len(found) == len(named), (done.returncode, done.stderr[-800:])
    return found


def test_files_that_claim_more_than_they_hold_take_no_memory(tmp_path):
    make_reference(tmp_path / "npz")
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000,)}".ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "npz" / "reference.npz", "w") as archive:
        archive.writestr("frames.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    make_reference(tmp_path / "bomb")
    with (
        zipfile.ZipFile(tmp_path / "bomb" / "reference.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("frames.npy", "w", force_zip64=True) as stream,
    ):
        stream.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
        for _ in range(64):
            stream.write(bytes(2**20))
    make_policy(tmp_path / "policy")
    claim = json.dumps({"motion": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}).encode()
    (tmp_path / "policy" / pretrained.WEIGHTS).write_bytes(struct.pack("<Q", len(claim)) + claim)
    named = [("reference", tmp_path / "npz"), ("reference", tmp_path / "bomb"), ("policy", tmp_path / "policy")]
    for index, name in enumerate(("num_hidden_layers", "hidden_size", "num_frames")):
        make_timesformer(tmp_path / f"net{index}")
        (tmp_path / f"net{index}" / "config.json").write_text(json.dumps(TIMESFORMER | {name: 10**9}))
        named.append(("timesformer", tmp_path / f"net{index}"))
    assert set(read_all(tmp_path, named).values()) == {"refused"}


def fuzz_models(tmp_path, cases, seed=0):
    rng, named = np.random.default_rng(seed), []
    for index in range(cases):
        path = tmp_path / f"{index}.xml"
        path.write_bytes(mutated(TINY_ROBOT.encode(), rng))
        named.append(("model", path))
    return read_all(tmp_path, named)


def test_a_damaged_model_is_read_or_refused(tmp_path):
    found = fuzz_models(tmp_path, CASES)
    assert set(found.values()) <= {"read", "refused"} and "refused" in found.values(), found


@pytest.mark.slow
def test_many_damaged_models_are_read_or_refused(tmp_path):
    wrong = {}
    for seed in range(-(-MANY // 500)):
        found = fuzz_models(tmp_path, 500, 1 + seed)
        wrong |= {path: said for path, said in found.items() if said not in ("read", "refused")}
    assert not wrong, wrong


def test_an_index_that_leads_out_of_its_folder_is_refused(tmp_path):
    make_timesformer(tmp_path / "net")
    (tmp_path / "net" / "model.safetensors").rename(tmp_path / "out.safetensors")
    for name in ("../out.safetensors", str(tmp_path / "out.safetensors")):
        (tmp_path / "net" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(ValueError, match=r"encoder: expected files in .*, got .* in its index"):
            load_encoder(tmp_path / "net")


if __name__ == "__main__":
    kind, folder, cases, seed = sys.argv[1:]
    print(fuzz(kind, Path(folder), int(cases), int(seed)))
