"""Warp's physics in a batch that shares one list of contacts, against MuJoCo's C engine, and a list that is full."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from mujoco import mjx

from nil_jax import envs
from nil_jax.envs import AutoResetWrapper, VmapWrapper, physics
from nil_jax.envs.base import KEY, POOL, _per_env

# Warp computes in float32, MuJoCo in float64. 300 steps of free flight agree to some 4e-6; feet that just touch the
# floor are in contact or not by rounding, which is worth some 1e-4 m.
TRAJECTORY_TOLERANCE = {"in the air": 3e-5, "on the floor": 1e-3}
NUM_ENVS, STEPS = 3, 60  # of five physics steps each
# A restarted environment differs from one that never ran only in the warm start of the solver.
RESTART_TOLERANCE = 1e-6
ROWS_OF_A_CONTACT = 3  # a cone of friction: one along the normal, two across


@pytest.fixture(scope="module")
def env(tiny_path):
    return envs.make(tiny_path, physics="warp", episode_length=3)


@pytest.fixture(scope="module")
def batch(env):
    """A batch, its first state and its step."""
    wrapped = VmapWrapper(env)
    return wrapped, jax.jit(wrapped.reset)(jax.random.split(jax.random.key(0), NUM_ENVS)), jax.jit(wrapped.step)


@pytest.mark.parametrize(("where", "height", "amplitude"), [("in the air", 10.0, 0.5), ("on the floor", 0.0, 0.1)])
def test_every_environment_follows_the_c_engine(env, batch, where, height, amplitude):
    _, state, step = batch
    state = state.replace(data=state.data.replace(qpos=state.data.qpos.at[:, 2].add(height)))
    oracles, rng = [mujoco.MjData(env.mj_model) for _ in range(NUM_ENVS)], np.random.default_rng(0)
    for i, data in enumerate(oracles):
        data.qpos[:], data.qvel[:] = state.data.qpos[i], state.data.qvel[i]
    for _ in range(STEPS):
        actions = rng.uniform(-amplitude, amplitude, (NUM_ENVS, 2)).astype(np.float32)
        state = step(state, jnp.asarray(actions))
        for data, action in zip(oracles, actions, strict=True):
            data.ctrl[:] = env.default_qpos[7:] + env.action_scale * action
            for _ in range(env.config.n_substeps):
                mujoco.mj_step(env.mj_model, data)
    expected = np.stack([data.qpos for data in oracles])
    np.testing.assert_allclose(state.data.qpos, expected, atol=TRAJECTORY_TOLERANCE[where])
    assert not np.asarray(state.metrics[physics.OVERFLOW]).any()


def test_a_restarted_environment_moves_as_a_new_one(batch):
    wrapped, new, plain_step = batch
    restarting = AutoResetWrapper(wrapped)
    state = new.replace(info=new.info | {POOL: new, KEY: jax.random.key(0), "final_obs": new.obs})
    step, action = jax.jit(restarting.step), jnp.tile(jnp.array([[0.3, -0.2]]), (NUM_ENVS, 1))
    shapes = jax.tree.map(jnp.shape, state.data)
    for _ in range(3):
        state = step(state, action)
    assert bool(state.truncated.all()) and int(state.info["step"].max()) == 0
    assert jax.tree.map(jnp.shape, state.data) == shapes
    same = (np.asarray(state.data.qpos)[:, None] == np.asarray(new.data.qpos)).all(axis=-1)
    assert same.any(axis=1).all()  # each began where one of the first states was
    expected = np.asarray(plain_step(new, action).data.qpos)[same.argmax(axis=1)]
    np.testing.assert_allclose(step(state, action).data.qpos, expected, atol=RESTART_TOLERANCE)


def test_only_what_belongs_to_one_environment_is_exchanged_at_a_restart(batch):
    own = _per_env(batch[1])
    assert own.data.qpos and own.data._impl.efc__force and own.obs and own.info["step"]
    assert not own.data._impl.contact__pos and not own.data._impl.nacon


def test_buffers_hold_what_a_tumbling_robot_needs(env, batch):
    bounds = env.default_qpos[7:, None] + env.action_scale * np.array([[-1.0, 1.0]])
    contacts, rows = physics.tumble(env.mj_model, env.default_qpos, bounds)
    assert contacts >= 4  # the ends of two capsules that lie on the floor
    assert rows >= ROWS_OF_A_CONTACT * contacts
    data = batch[1].data
    assert data._impl.naconmax == NUM_ENVS * env.config.buffer_margin * contacts
    assert data._impl.njmax == env.config.buffer_margin * rows


def test_lost_contacts_are_told_from_a_solver_that_ran_out_of_iterations(env, batch):
    kinds = mjx.warp.mjwp_types.OverflowType
    for kind, lost in ((kinds.NARROWPHASE, 1.0), (kinds.NEFC, 1.0), (kinds.ITERATIONS, 0.0), (kinds.NONE, 0.0)):
        data = batch[1].data.tree_replace({"_impl.overflow": jnp.array([int(kind)])})
        np.testing.assert_array_equal(env.physics.metrics(data)[physics.OVERFLOW], [lost])


@pytest.mark.parametrize("setting", ["physics", "renderer"])
def test_without_warp_the_message_says_what_to_type(tiny_path, monkeypatch, setting):
    monkeypatch.setattr(mjx.warp, "WARP_INSTALLED", False)
    with pytest.raises(ValueError, match=rf'{setting}: expected the package warp-lang.*pip install "nil-jax\[warp\]"'):
        envs.make(tiny_path, **{setting: "warp"})


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("physics", "bullet", 'expected "jax" or "warp"'),
        ("renderer", "gl", 'expected "auto" or "jax" or "warp"'),
        ("buffer_margin", 0.5, "expected a number >= 1"),
    ],
)
def test_settings_out_of_range_are_refused(setting, value, message):
    with pytest.raises(ValueError, match=f"{setting}: {message}"):
        envs.EnvConfig(**{setting: value})
