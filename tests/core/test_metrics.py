"""What a run logs to Weights & Biases, with the real package, offline."""

import contextlib
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from short_run import TRAIN_FLAGS

import nil_jax
from nil_jax import cli
from nil_jax.run import Run

TWICE = """
import sys
from pathlib import Path
from nil_jax.metrics import MetricsLog, start_wandb

folder = Path(sys.argv[1])
for resumed, last in ((0, 3), (2, 4)):
    log = MetricsLog(folder, resumed, start_wandb(folder, "walks", {"gamma": 0.97, "actor_hidden": (8, 8)}))
    for step in range(resumed + 1, last + 1):
        log.write(step, {"loss": 10.0 * step, "broken": float("nan")})
    log.close()
assert "torch" not in sys.modules  # tensorboardX would load it, which takes seconds
"""
BLOCK = 32768


def environment(folder: Path, **given: str) -> dict[str, str]:
    """Of a process of somebody who has never logged in."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return kept | {"HOME": str(folder), "NETRC": str(folder / "netrc"), "WANDB_CONFIG_DIR": str(folder)} | given


def records(path: Path) -> list:
    """What a .wandb file holds: a header of 7 bytes, then pieces of records, as in the logs of LevelDB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, piece, found = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:  # too little for another piece: the block is filled up
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        piece += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last piece
            found.append(Record.FromString(piece))
            piece = b""
    return found


def sessions(folder: Path) -> list[tuple[str, dict, dict[int, dict]]]:
    """Id, settings and rows (by step) of each time that a run was started."""
    found = []
    for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        run_id, config, rows = None, {}, {}
        for record in records(path):
            if record.HasField("run"):
                run_id = record.run.run_id
                config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            if record.HasField("history"):
                row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                rows[record.history.step.num] = {name: v for name, v in row.items() if not name.startswith("_")}
        found.append((run_id, config, rows))
    return found


def test_rows_and_settings_arrive_and_a_resumed_run_is_the_same_one(tmp_path):
    command = [sys.executable, "-c", TWICE, str(tmp_path)]
    done = subprocess.run(command, env=environment(tmp_path, WANDB_MODE="offline"), capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == done.stderr == "", done.stderr
    (first, config, rows), (second, _, later) = sessions(tmp_path)
    assert first == second == (tmp_path / "wandb_id.txt").read_text().strip()
    assert config["gamma"] == 0.97 and config["actor_hidden"] == [8, 8]
    assert rows == {step: {"loss": 10.0 * step} for step in (1, 2, 3)}
    assert later == {step: {"loss": 10.0 * step} for step in (3, 4)}


def test_somebody_who_is_not_logged_in_is_told_before_anything_is_written(tmp_path, tiny_path, clip):
    argv = ["train", str(tiny_path), str(clip), "-o", str(tmp_path / "run"), *TRAIN_FLAGS, "--wandb", "walks"]
    code = f"from nil_jax import cli; cli.main({argv!r})"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 2, done.stderr
    assert "nil-jax: wandb: expected to be logged in, got: " in done.stderr and "WANDB_MODE=offline" in done.stderr
    assert not (tmp_path / "run").exists()


def test_without_the_package_or_a_folder_it_is_refused(tiny_env, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="wandb: expected a folder of the run, got none"):
        nil_jax.train(tiny_env, wandb="walks", progress=False)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        ValueError, match=r'wandb: expected the package, got none; type: pip install "nil-jax\[wandb\]"'
    ):
        nil_jax.train(tiny_env, wandb="walks", output=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_of_several_processes_only_the_first_logs(tiny_env, tmp_path, monkeypatch):
    made, there = [], SimpleNamespace(offline=False, url="there", finish=lambda: None)
    monkeypatch.setattr("nil_jax.run.start_wandb", lambda *given: made.append(given) or there)
    for first in (False, True):
        monkeypatch.setattr("nil_jax.parallel.is_first", lambda first=first: first)
        with contextlib.closing(Run(tmp_path, nil_jax.Config().with_fields(wandb="walks"), {}, False, False)) as run:
            run.start(nil_jax.ImitationEnv(tiny_env, None))
            run.begin(0, 1)
        assert len(made) == first
    assert made[0][1] == "walks" and made[0][2]["wandb"] == "walks"


@pytest.mark.slow
def test_the_flag_logs_a_run_and_its_continuation(tiny_path, clip, tmp_path):
    argv = ["train", str(tiny_path), str(clip), "-o", str(tmp_path / "run"), *TRAIN_FLAGS, "--wandb", "walks"]
    for more in ([], ["--resume"]):
        code = f"from nil_jax import cli; cli.main({argv + more!r})"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment(tmp_path, WANDB_MODE="offline"),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 and "Weights & Biases: offline; later, type: wandb sync" in done.stderr, done.stderr
    (first, config, rows), (second, *_) = sessions(tmp_path / "run")
    assert first == second and config["num_envs"] == 8 and config["wandb"] == "walks"
    written = {}
    for row in nil_jax.metrics.read_metrics(tmp_path / "run"):
        step = row.pop("step")
        written[step] = written.get(step, {}) | {name: value for name, value in row.items() if value is not None}
    assert rows == {step: pytest.approx(row) for step, row in written.items()}
    assert cli.main(["eval", str(tmp_path / "run"), "--num-envs", "1"]) is None
