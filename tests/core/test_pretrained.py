"""Policies without their clips: written from a run, read again, equal in what they do."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from short_run import SETTINGS

import nil_jax
from nil_jax import pretrained
from nil_jax.run import SavedRun


@pytest.fixture(scope="module")
def run(tiny_env, moving_reference, tmp_path_factory):
    """A short run on a reference with a motion."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    nil_jax.train(tiny_env, moving_reference, output=folder, progress=False, **SETTINGS)
    return folder


def test_a_saved_policy_acts_as_its_run_and_needs_no_clip(run, tmp_path):
    nil_jax.save_pretrained(run, tmp_path / "walk")
    assert not any((tmp_path / "walk").glob("**/*.npz"))
    found = nil_jax.load_pretrained(tmp_path / "walk")
    env, policies = SavedRun.load(run).policies()
    observation = jax.random.normal(jax.random.key(0), (4, env.observation_size))
    expected, _ = policies["policy"](observation, jax.random.key(1))
    np.testing.assert_array_equal(found.policy(observation, jax.random.key(1))[0], expected)
    state, ours = (jax.jit(e.reset)(jax.random.split(jax.random.key(2), 2)) for e in (env, found.env))
    np.testing.assert_array_equal(state.obs, ours.obs)
    assert found.evaluation == json.loads((run / "evaluation.json").read_text())
    assert found.about["steps"] == SavedRun.load(run).step > 0
    iou = nil_jax.rewards.mask_iou(
        jnp.asarray(found.env.reference.masks)[:, ::2, ::2], jnp.asarray(env.reference.masks)
    )
    assert float(iou.mean()) > 0.7  # drawn from the motion at another size


def test_a_policy_that_ships_is_found_by_its_name(run, tmp_path, monkeypatch):
    nil_jax.save_pretrained(run, tmp_path / "walk")
    ships = {"unitree_a1/walk": nil_jax.load_pretrained(tmp_path / "walk")}
    monkeypatch.setattr(pretrained, "load_pretrained", ships.__getitem__)
    env, policies = pretrained.load_policies("unitree_a1/walk")
    assert env is ships["unitree_a1/walk"].env and policies == {"policy": ships["unitree_a1/walk"].policy}


def test_damaged_policies_are_refused(run, tmp_path):
    with pytest.raises(ValueError, match=r"policy: expected one of .*got nobody/walks"):
        nil_jax.load_pretrained("nobody/walks")
    nil_jax.save_pretrained(run, tmp_path / "walk")
    with pytest.raises(ValueError, match="expected a folder that is not there yet"):
        nil_jax.save_pretrained(run, tmp_path / "walk")
    tensors = load_file(tmp_path / "walk" / "policy.safetensors")
    del tensors["normalizer/std"]
    save_file(tensors, tmp_path / "walk" / "policy.safetensors")
    with pytest.raises(ValueError, match="got others: normalizer/std"):
        nil_jax.load_pretrained(tmp_path / "walk")
    del tensors["motion"]
    save_file(tensors, tmp_path / "walk" / "policy.safetensors")
    with pytest.raises(ValueError, match=r"policy: expected .*motion"):
        nil_jax.load_pretrained(tmp_path / "walk")
    (tmp_path / "walk" / "policy.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match=r"policy: expected policy\.json and policy\.safetensors"):
        nil_jax.load_pretrained(tmp_path / "walk")
    for damaged in ("{", "[]", "3", '{"format": "nil_jax_policy"}'):
        (tmp_path / "walk" / "policy.json").write_text(damaged)
        with pytest.raises(ValueError, match="policy: expected"):
            nil_jax.load_pretrained(tmp_path / "walk")


SLOW = {"talos/walk", "unitree_h1/walk"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in nil_jax.list_pretrained()]
)
def test_shipped_policies_load_and_walk_for_two_seconds(name):
    found = nil_jax.load_pretrained(name)
    env = found.env.from_the_start()

    @jax.jit
    def walk(key):
        def step(state, _):
            return env.step(state, found.policy(state.obs, key)[0], tick=False), None

        return jax.lax.scan(step, env.reset(jax.random.split(key, 2)), None, round(2 / env.dt))[0]

    state = walk(jax.random.key(0))
    assert not np.asarray(state.metrics["fall"]).any()
    assert np.asarray(state.data.qpos[:, 0]).min() > 0.7 * 2 * found.evaluation["policy"]["speed"]
