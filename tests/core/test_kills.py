"""Runs that are killed at random moments, inside a checkpoint write too: none is lost, all end bit-equal."""

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import parallel_run
import pytest

SECONDS = 600
LATEST = 1.5  # s after its first sign of life at which a run is killed


@pytest.fixture(scope="module")
def start():
    """Starts a training run in a process of its own; the imports are done once, before the fork."""
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["parallel_run"])

    def started(out: Path, settings: dict) -> multiprocessing.Process:
        arguments = (str(out.parent / "said.txt"), str(out), json.dumps(settings))
        process = forks.Process(target=parallel_run.main_into, args=arguments)
        process.start()
        return process

    with pytest.MonkeyPatch.context() as patch:
        # Compiled programs are read again from the cache, so that more of the time is spent where a kill can hurt.
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        patch.setenv("JAX_PLATFORMS", "cpu")
        yield started


def ended(process: multiprocessing.Process) -> bool:
    process.join(SECONDS)
    return process.exitcode == 0


def names_in(folder: Path) -> set[str]:
    return set(os.listdir(folder)) if folder.is_dir() else set()


def began(folder: Path) -> bool:
    about = folder / "run.json"
    return about.is_file() and about.stat().st_size > 0


def is_writing(checkpoints: Path) -> bool:
    """Whether a checkpoint is half written: orbax gives it another name until it is whole."""
    return any(not name.isdigit() for name in names_in(checkpoints))


def newest(checkpoints: Path) -> int:
    return max((int(name) for name in names_in(checkpoints) if name.isdigit()), default=0)


def kill_at_random(process: multiprocessing.Process, folder: Path, chance: random.Random, in_write: bool) -> bool:
    """Waits for a moment and kills; returns whether a checkpoint was half written then."""
    checkpoints, begun, deadline = folder / "checkpoints", None, time.monotonic() + SECONDS
    leftovers, delay = names_in(checkpoints), chance.uniform(0, LATEST)
    while process.is_alive():
        assert time.monotonic() < deadline
        fresh = names_in(checkpoints) - leftovers
        if in_write and any(not name.isdigit() for name in fresh):
            time.sleep(chance.uniform(0, 0.02))
            break
        if begun is None and (fresh or (not leftovers and began(folder))):
            begun = time.monotonic()
        if not in_write and begun is not None and time.monotonic() - begun > delay:
            break
        time.sleep(0.001)
    process.kill()
    process.join()
    return is_writing(checkpoints)


def kill_again_and_again(start, tmp_path: Path, kills: int, settings: dict, seed: int = 0) -> dict:
    """A run that is killed so many times and then left alone, against one that never was; what happened, in figures."""
    chance, folder = random.Random(seed), tmp_path / "killed"
    killed = settings | {"output": str(folder)}
    whole = start(tmp_path / "whole.npz", settings | {"output": str(tmp_path / "whole")})
    assert ended(whole), (tmp_path / "said.txt").read_text()[-2000:]
    steps, half_written = [0], 0
    for index in range(kills):
        process = start(tmp_path / "end.npz", killed | {"resume": began(folder)})
        half_written += kill_at_random(process, folder, chance, in_write=index % 3 == 1)
        said = (tmp_path / "said.txt").read_text()
        assert process.exitcode == -signal.SIGKILL, said[-2000:]
        assert not steps[-1] or f"resumed at step {steps[-1]:,}" in said
        steps.append(newest(folder / "checkpoints"))
        assert steps[-1] >= steps[-2], "a checkpoint was lost"
    last = start(tmp_path / "end.npz", killed | {"resume": began(folder)})
    assert ended(last), (tmp_path / "said.txt").read_text()[-2000:]
    left, right = np.load(tmp_path / "whole.npz"), np.load(tmp_path / "end.npz")
    assert sorted(left) == sorted(right) and len(left.files) > 10
    for name in left.files:
        np.testing.assert_array_equal(left[name], right[name])
    assert not is_writing(folder / "checkpoints")
    return {"kills": kills, "in a write": half_written, "steps": steps}


def test_a_run_that_is_killed_three_times_ends_as_if_it_never_was(start, tmp_path):
    found = kill_again_and_again(start, tmp_path, 3, {"num_timesteps": 16_000, "num_evals": 20})
    assert found["in a write"] >= 1, found


@pytest.mark.slow
def test_a_run_that_is_killed_fifty_times_ends_as_if_it_never_was(start, tmp_path):
    found = kill_again_and_again(start, tmp_path, 50, {"num_timesteps": 400_000, "num_evals": 200})
    print(found)
    assert found["in a write"] >= 10, found
