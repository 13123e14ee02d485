"""A run on Warp's physics and drawn by Warp: its files, its evaluation, lost contacts, and what is saved of it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nil_jax
from nil_jax import capacity, cli, envs
from nil_jax.checkpoint import Checkpoints
from nil_jax.envs import AutoResetWrapper, physics
from nil_jax.rollout import collect

FLAGS = (
    "--physics=warp --buffer-margin=1 --num-timesteps=128 --num-envs=8 --num-evals=1 --num-eval-envs=2 "
    "--learning-starts=32 --batch-size=16 --grad-updates-per-step=1 --actor-hidden 8 --critic-hidden 8 "
    "--video-weight=0"
)
NUM_ENVS = 3


def sine_policy(observation, key):
    del key
    return jnp.sin(jnp.arange(observation.shape[0], dtype=jnp.float32))[:, None] * jnp.ones((1, 2)), {}


@pytest.mark.slow
def test_the_command_trains_on_warp_and_tells_of_lost_contacts(tiny_path, tiny_reference, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(physics, "tumble", lambda *arguments: (4, 3))  # fewer rows than one contact has
    monkeypatch.setattr(capacity, "_seconds_per_look", lambda env, _: {"jax": 2.0, "warp": 1.0}[env.renderer_kind])
    run = tmp_path / "run"
    cli.main(["train", str(tiny_path), str(tiny_reference.save(tmp_path / "a.ref")), "-o", str(run), *FLAGS.split()])
    printed = capfd.readouterr()
    said = " ".join(printed.err.split())
    assert said.count("did not fit into the buffers") == 1 and "--buffer-margin 2" in said
    assert "taking warp" in said and printed.out == ""  # nothing from inside the kernels
    assert json.loads((run / "run.json").read_text())["renderer"] == "warp"
    assert (run / "comparison.mp4").stat().st_size > 1000

    monkeypatch.setattr(capacity, "_seconds_per_look", None)  # the run has decided
    cli.main(["eval", str(run), "--num-envs", "2", "--json"])
    rows = json.loads(capfd.readouterr().out)
    for name, expected in json.loads((run / "evaluation.json").read_text()).items():
        assert rows[name] == pytest.approx(expected, rel=1e-4)
        assert rows[name][physics.OVERFLOW] == 1.0 and rows[name]["mask_iou"] > 0.1


@pytest.mark.slow
def test_a_state_that_was_saved_goes_on_as_it_would_have_with_either_renderer(tiny_path, tiny_reference, tmp_path):
    robot = envs.make(tiny_path, physics="warp")
    ticks = {}
    for kind in capacity.RENDERERS:
        env = AutoResetWrapper(nil_jax.ImitationEnv(robot, tiny_reference).with_renderer(kind))
        ticks[kind] = jax.jit(lambda state, key, env=env: collect(env, sine_policy, state, key))
    first = jax.jit(env.reset)(jax.random.split(jax.random.key(0), NUM_ENVS))
    template = jax.tree.map(jnp.zeros_like, first)
    state, _, _ = ticks["jax"](first, jax.random.key(1))
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, {"state": state})
    restored = checkpoints.restore({"state": template})["state"]
    checkpoints.close()
    expected, _, paid = ticks["jax"](state, jax.random.key(2))
    found, _, paid_by_warp = ticks["warp"](restored, jax.random.key(2))
    assert np.asarray(paid["reward/mask"])[-1].min() > 0.5  # it sees the robot where the clip shows it
    jax.tree.map(np.testing.assert_array_equal, paid_by_warp, paid)
    jax.tree.map(np.testing.assert_array_equal, found.data, expected.data)
