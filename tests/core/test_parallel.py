"""Several devices, in processes of their own: eight virtual ones of a CPU, and two processes that join."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.stats
from parallel_run import SETTINGS, Seek

import nil_jax
from nil_jax import cli, parallel
from nil_jax.metrics import read_metrics
from nil_jax.program import share_of_a_device

SCRIPT = Path(__file__).parents[1] / "parallel_run.py"
SECONDS = 300
SHORT = SETTINGS | {"num_timesteps": 256, "num_evals": 2, "progress": False}  # of seeds side by side

UPDATES = """
import functools, sys, jax, jax.numpy as jnp, numpy as np
from nil_jax import parallel
if sys.argv[1:]:
    parallel.join(coordinator_address=sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
from nil_jax.learning import LearnerConfig, make_actor_critic
from nil_jax.types import Transition

B, O, A = 64, 7, 3
whole, split = parallel.REPEATED, parallel.SPLIT
for critic in ("twin", "distributional"):
    config = LearnerConfig(actor_hidden=(32, 32), critic_hidden=(32, 32), critic=critic, batch_size=B)
    one, many = make_actor_critic(O, A, config), make_actor_critic(O, A, config, parallel.AXIS)
    k = jax.random.split(jax.random.key(0), 5)
    seen = jax.random.normal(k[0], (10, B, O))
    batches = Transition(seen, jnp.tanh(jax.random.normal(k[1], (10, B, A))), jax.random.normal(k[2], (10, B)),
                         jnp.ones((10, B)), jax.random.normal(k[3], (10, B, O)), {"truncated": jnp.zeros((10, B))})

    def ten(learner, state, batches):
        def step(state, inputs):
            batch, key = inputs
            return learner.update(learner.observe(state, batch.observation), batch, key)
        return jax.lax.scan(step, state, (batches, jax.random.split(jax.random.key(1), 10)))

    state = one.init(k[4])
    expected = jax.jit(functools.partial(ten, one))(state, batches)
    mapped = jax.shard_map(functools.partial(ten, many), mesh=parallel.make_mesh(8), check_vma=False,
                           in_specs=(whole, jax.P(None, parallel.AXIS)), out_specs=whole)
    # Of several processes each has a copy of its own, so it goes in as what all of them know.
    found = parallel.first_copy(jax.jit(mapped)(*jax.tree.map(np.asarray, (state, batches))))
    worst = jax.tree.map(lambda a, b: float(jnp.abs(a.astype(float) - b.astype(float)).max()), expected, found)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state.params, expected[0].params)
    print("updates:", critic, *(max(jax.tree.leaves(tree)) for tree in (worst[0].params, worst, moved)))
"""


def environment(num_devices: int) -> dict[str, str]:
    """Of a process that sees so many devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={num_devices}"
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def command(out: Path, settings: dict, *processes: object) -> list[str]:
    return [sys.executable, str(SCRIPT), str(out), json.dumps(settings), *map(str, processes)]


def run(out: Path, num_devices: int, **settings) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(out, settings), env=environment(num_devices), capture_output=True, text=True, timeout=SECONDS
    )


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


@pytest.fixture
def start():
    """A function that starts a process with so many devices; none outlives the test."""
    started = []

    def start(line: list[str], num_devices: int) -> subprocess.Popen:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(line, env=environment(num_devices), **pipes))
        return started[-1]

    yield start
    for process in started:
        with process:
            process.kill()


@pytest.fixture
def start_two(start):
    """A function that starts two processes of one run."""

    def start_two(out: Path, **settings) -> list[subprocess.Popen]:
        address = f"localhost:{free_port()}"
        return [start(command(out, settings, address, 2, index), 2) for index in range(2)]

    return start_two


def assert_equal_learners(left: Path, right: Path) -> None:
    left, right = np.load(left), np.load(right)
    assert sorted(left) == sorted(right) and len(left.files) > 10
    for name in left.files:
        np.testing.assert_array_equal(left[name], right[name])


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_ten_updates_on_eight_devices_agree_with_one(processes, start):
    line, address = [sys.executable, "-c", UPDATES], f"localhost:{free_port()}"
    lines = [line] if processes == 1 else [[*line, address, str(index)] for index in range(processes)]
    started = [start(line, 8 // processes) for line in lines]
    for process in started:
        out, said = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, said[-2000:]
        rows = [line.split()[1:] for line in out.splitlines() if line.startswith("updates:")]
        rows = {name: [float(value) for value in values] for name, *values in rows}
        assert sorted(rows) == ["distributional", "twin"]
        for parameters, everything, moved in rows.values():
            assert parameters < 1e-5 and everything < 1e-4 and moved > 1e-3


@pytest.mark.slow
def test_training_on_eight_devices_learns_and_resumes_bit_equal(tmp_path):
    whole = run(tmp_path / "whole.npz", 8, output=str(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr[-2000:]
    assert np.load(tmp_path / "whole.npz")["value"] > 18  # of 20; a point that stays where it is has 13
    newest = max((tmp_path / "whole" / "checkpoints").iterdir(), key=lambda path: int(path.name))
    shutil.rmtree(newest)  # as if the run had ended there
    resumed = run(tmp_path / "resumed.npz", 8, output=str(tmp_path / "whole"), resume=True)
    assert resumed.returncode == 0 and f"resumed at step {int(newest.name) * 3 // 4:,}" in resumed.stderr
    assert_equal_learners(tmp_path / "whole.npz", tmp_path / "resumed.npz")
    fewer = run(tmp_path / "no.npz", 1, output=str(tmp_path / "whole"), resume=True)
    assert fewer.returncode == 2 and "num_devices: expected at most 1, which JAX has here, got 8" in fewer.stderr


@pytest.mark.parametrize(("field", "value", "even"), [("num_envs", 12, 16), ("batch_size", 100, 104)])
def test_what_devices_cannot_share_evenly_is_refused(field, value, even):
    config = nil_jax.Config().with_fields(**{field: value})
    message = (
        rf"{field}: expected a multiple of num_devices \(8\), got {value}; type: --{field.replace('_', '-')} {even}$"
    )
    with pytest.raises(ValueError, match=message):
        share_of_a_device(config, 8)


def test_a_replay_too_small_is_told_in_the_numbers_that_were_given():
    config = nil_jax.Config().with_fields(replay_size=2000, learning_starts=5000)
    with pytest.raises(ValueError, match=r"replay_size: expected at least 5120 .* got 2000; raise"):
        share_of_a_device(config, 8)


def test_a_device_gets_its_share_of_everything_that_is_split():
    config = nil_jax.Config().with_fields(replay_size=80_000)
    share = share_of_a_device(config, 8)
    assert (share.train.num_envs, share.learner.batch_size) == (16, 64)
    assert (share.learner.replay_size, share.learner.learning_starts) == (10_000, 625)
    assert share.learner.gamma == config.learner.gamma and share_of_a_device(config, 1) == config


def test_a_cpu_becomes_several_devices_until_jax_is_in_use():
    lines = (
        "parallel.use_cpu_devices(3); print(jax.device_count()); parallel.use_cpu_devices(4); print(jax.device_count())"
    )
    code = f"import jax; from nil_jax import parallel; {lines}"
    done = subprocess.run([sys.executable, "-c", code], env=environment(1), capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["3", "3"], done.stderr[-2000:]


def test_more_devices_than_there_are_is_refused():
    with pytest.raises(ValueError, match=r"num_devices: expected at most \d+, which JAX has here, got 1000"):
        parallel.make_mesh(1000)


def test_joining_nobody_is_refused_in_one_line(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["train", "ant", "walk.mp4", "-o", "runs/ant", "--num-processes", "2"])
    assert "expected them with --distributed" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_of_two_processes_is_killed_the_other_ends_and_both_resume(victim, start_two, tmp_path):
    folder = tmp_path / "run"
    settings = {"output": str(folder), "num_timesteps": 2_048, "num_evals": 4}
    processes = start_two(tmp_path / "killed.npz", **settings)
    checkpoints, deadline = folder / "checkpoints", time.monotonic() + SECONDS
    while not (checkpoints.is_dir() and any(path.name.isdigit() for path in checkpoints.iterdir())):
        assert time.monotonic() < deadline and all(process.poll() is None for process in processes)
        time.sleep(0.1)
    processes[victim].send_signal(signal.SIGKILL)
    said = processes[1 - victim].communicate(timeout=SECONDS)[1]
    processes[victim].communicate()
    # JAX itself ends a process without a first one, or that waits for the other to write its part of a checkpoint.
    ours = "expected 2 processes, but one has gone; the newest checkpoint is that of step" in said
    assert processes[1 - victim].returncode == 2 if ours else "another task died" in said
    resumed = start_two(tmp_path / "resumed.npz", **settings, resume=True)
    said = [process.communicate(timeout=SECONDS)[1] for process in resumed]
    assert [process.returncode for process in resumed] == [0, 0], said
    assert "resumed at step" in said[0] and "resumed" not in said[1]
    assert np.load(tmp_path / "resumed.npz")["value"] > 0
    assert (checkpoints / "2048").is_dir()


@pytest.mark.slow
def test_returns_over_five_seeds_do_not_tell_one_device_from_eight(tmp_path):
    returns = {1: [], 8: []}
    for num_devices, found in returns.items():
        for seed in range(5):
            out = tmp_path / f"{num_devices}_{seed}.npz"
            done = run(out, num_devices, seed=seed)
            assert done.returncode == 0, done.stderr[-2000:]
            found.append(float(np.load(out)["value"]))
    assert scipy.stats.ttest_ind(returns[1], returns[8], equal_var=False).pvalue > 0.05, returns
    assert min(returns[8]) > 0.9 * np.mean(returns[1]), returns  # one seed that fails would hide in its own variance


def test_each_seed_has_a_folder_and_an_actor_of_its_own(tmp_path):
    # The checker takes a slice of a batch of keys for the batch.
    with jax.debug_key_reuse(False):
        found = nil_jax.train_seeds(Seek(), seeds=(3, 5), output=tmp_path / "both", **SHORT)
    for seed, result in zip((3, 5), found, strict=True):
        assert result.folder == tmp_path / "both" / f"seed_{seed}" and (result.folder / "evaluation.json").is_file()
    actors = [jax.tree.leaves(result.learner.params["actor"])[0] for result in found]
    assert np.abs(actors[0] - actors[1]).max() > 0.01
    with pytest.raises(ValueError, match=r"seeds: expected one or more different integers, got \[1, 1\]"):
        nil_jax.train_seeds(Seek(), seeds=(1, 1))


@pytest.mark.slow
def test_seeds_side_by_side_are_those_one_after_the_other(tmp_path):
    with jax.debug_key_reuse(False):  # as above
        found = nil_jax.train_seeds(Seek(), seeds=(3, 5), output=tmp_path / "both", **SHORT)
    for seed, result in zip((3, 5), found, strict=True):
        alone = nil_jax.train(Seek(), seed=seed, **SHORT)
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-4), result.learner, alone.learner)
    # As if the runs had been killed while the last checkpoints were written, and then while the first ones were: one is
    # there, the other is not.
    folders = [result.folder / "checkpoints" for result in found]
    newest = max(folders[0].iterdir(), key=lambda path: int(path.name))
    for lost in ([newest], folders[0].iterdir()):
        for folder in lost:
            shutil.rmtree(folder)
        with jax.debug_key_reuse(False):
            again = nil_jax.train_seeds(Seek(), seeds=(3, 5), output=tmp_path / "both", resume=True, **SHORT)
        steps = [sorted(int(path.name) for path in folder.iterdir()) for folder in folders]
        assert steps[0] == steps[1] and steps[0][-1] == int(newest.name)
    for before, after in zip(found, again, strict=True):
        jax.tree.map(np.testing.assert_array_equal, before.learner, after.learner)
        steps = [row["step"] for row in read_metrics(after.folder) if "sps" in row]
        assert len(steps) == len(set(steps))  # what was done again is told once
