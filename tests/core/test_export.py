"""Exported policies: alone with JAX and MuJoCo they do what the library does."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from PIL import Image

from nil_jax.export import _xml, controller, export_policy
from nil_jax.learning import LearnerConfig, make_actor_critic, make_policy
from nil_jax.rollout import ImitationEnv

ALONE = """
import sys, json, numpy as np, jax, jax.export, mujoco
from pathlib import Path
folder = Path(sys.argv[1])
call = jax.jit(jax.export.deserialize(bytearray((folder / "policy.stablehlo").read_bytes())).call)
about = json.loads((folder / "policy.json").read_text())
model = mujoco.MjModel.from_xml_path(str(folder / "model.xml"))
data = mujoco.MjData(model)
data.qpos[:] = about["start_qpos"]
action = np.zeros(model.nu, np.float32)
for clock in range(20):
    data.ctrl[:], action = call(data.qpos.astype(np.float32), data.qvel.astype(np.float32), action, np.int32(clock))
    mujoco.mj_step(model, data, about["substeps"])
assert not any(name.startswith("nil_jax") for name in sys.modules)
print(json.dumps(data.qpos.tolist()))
"""


@pytest.fixture(scope="module", params=["with a reference", "without"])
def trained(request, tiny_env, tiny_reference):
    reference = tiny_reference if request.param == "with a reference" else None
    env = ImitationEnv(tiny_env, reference)
    learner = make_actor_critic(env.observation_size, env.action_size, LearnerConfig())
    state = learner.init(jax.random.key(0))
    # An untrained actor hardly acts: a larger one can be told from none.
    louder = jax.tree.map(lambda leaf: 3.0 * leaf, state.average_actor)
    return env, make_policy(learner, dataclasses.replace(state, average_actor=louder), True)


def test_controller_sees_and_acts_as_the_environment(trained):
    env, policy = trained
    state = jax.jit(env.reset)(jax.random.split(jax.random.key(1), 1))
    control, step = jax.jit(controller(env, policy)), jax.jit(env.step)
    for clock in range(4):
        action, _ = policy(state.obs, jax.random.key(0))
        inputs = state.data.qpos[0], state.data.qvel[0], state.info["last_action"][0], jnp.int32(clock)
        ctrl, found = control(*inputs)
        state = step(state, action)
        np.testing.assert_allclose(found, action[0], atol=1e-5)
        np.testing.assert_allclose(ctrl, state.data.ctrl[0], atol=1e-5)
        assert float(jnp.abs(found).max()) > 1e-3


def test_exported_files_run_without_the_library(trained, tmp_path):
    env, policy = trained
    export_policy(env, policy, tmp_path / "policy")
    found = json.loads(subprocess.check_output([sys.executable, "-c", ALONE, str(tmp_path / "policy")], text=True))
    model, data = env.env.mj_model, mujoco.MjData(env.env.mj_model)
    data.qpos[:] = env.env.start_qpos
    control, action = jax.jit(controller(env, policy)), np.zeros(model.nu, np.float32)
    for clock in range(20):
        state = data.qpos.astype(np.float32), data.qvel.astype(np.float32)
        data.ctrl[:], action = control(*state, action, np.int32(clock))
        mujoco.mj_step(model, data, env.env.config.n_substeps)
    np.testing.assert_allclose(found, data.qpos, atol=1e-4)
    with pytest.raises(ValueError, match="expected a folder that is not there yet"):
        export_policy(env, policy, tmp_path / "policy")


def test_an_exported_model_finds_its_textures(tmp_path):
    (tmp_path / "assets").mkdir()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "assets" / "skin.png")
    texture = '<texture name="skin" type="2d" file="skin.png"/><material name="skin" texture="skin"/>'
    ball = '<worldbody><body><freejoint/><geom size=".1" material="skin"/></body></worldbody>'
    head = '<compiler texturedir="assets"/>'
    (tmp_path / "ball.xml").write_text(f"<mujoco>{head}<asset>{texture}</asset>{ball}</mujoco>")
    spec = mujoco.MjSpec.from_file(str(tmp_path / "ball.xml"))
    assert mujoco.MjModel.from_xml_string(_xml(spec)).ntex == 1
