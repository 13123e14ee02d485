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
from nil_jax.rollout import ImitationConfig, ImitationEnv

ALONE = """
import sys, json, numpy as np, jax, jax.export, mujoco
from pathlib import Path
folder = Path(sys.argv[1])
call = jax.jit(jax.export.deserialize(bytearray((folder / "policy.stablehlo").read_bytes())).call)
about = json.loads((folder / "policy.json").read_text())
model = mujoco.MjModel.from_xml_path(str(folder / "model.xml"))
data = mujoco.MjData(model)
data.qpos[:], data.qvel[:] = about["start_qpos"], about["start_qvel"]
action = np.zeros(model.nu, np.float32)
for clock in range(20):
    data.ctrl[:], action = call(data.qpos.astype(np.float32), data.qvel.astype(np.float32), action, np.int32(clock))
    mujoco.mj_step(model, data, about["substeps"])
assert not any(name.startswith("nil_jax") for name in sys.modules)
print(json.dumps(data.qpos.tolist()))
"""


@pytest.fixture(scope="module", params=["on a clip", "from rest on a loop", "without a reference"])
def trained(request, tiny_env, moving_reference):
    reference, config = None, ImitationConfig()
    if request.param == "on a clip":
        reference = dataclasses.replace(moving_reference, loop=False)
    elif request.param == "from rest on a loop":  # which is entered where it is most like standing: at frame 5
        reference = dataclasses.replace(moving_reference, motion=np.roll(moving_reference.motion, 5, axis=0))
        config = ImitationConfig(starts="rest")
    env = ImitationEnv(tiny_env, reference, config=config).from_the_start()
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
    data.qpos[:], data.qvel[:], _ = env.first_pose()
    control, action = jax.jit(controller(env, policy)), np.zeros(model.nu, np.float32)
    for clock in range(20):
        state = data.qpos.astype(np.float32), data.qvel.astype(np.float32)
        data.ctrl[:], action = control(*state, action, np.int32(clock))
        mujoco.mj_step(model, data, env.env.config.n_substeps)
    np.testing.assert_allclose(found, data.qpos, atol=1e-4)
    with pytest.raises(ValueError, match="expected a folder that is not there yet"):
        export_policy(env, policy, tmp_path / "policy")


def test_an_exported_model_finds_its_textures_and_meshes(tmp_path):
    for folder in ("assets", "shapes"):
        (tmp_path / folder).mkdir()
    corners, faces = ("0 0 0", ".1 0 0", "0 .1 0", "0 0 .1"), ("1 3 2", "1 2 4", "1 4 3", "2 3 4")
    lines = [f"v {corner}" for corner in corners] + [f"f {face}" for face in faces]
    (tmp_path / "shapes" / "tetra.obj").write_text("\n".join(lines))
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "assets" / "skin.png")
    assets = '<texture name="skin" type="2d" file="skin.png"/><material name="skin" texture="skin"/>'
    assets += '<mesh name="tetra" file="tetra.obj"/>'
    geoms = '<geom size=".1" material="skin"/><geom type="mesh" mesh="tetra"/>'
    ball = f"<worldbody><body><freejoint/>{geoms}</body></worldbody>"
    head = '<compiler texturedir="assets" meshdir="shapes"/>'
    (tmp_path / "ball.xml").write_text(f"<mujoco>{head}<asset>{assets}</asset>{ball}</mujoco>")
    spec = mujoco.MjSpec.from_file(str(tmp_path / "ball.xml"))
    model = mujoco.MjModel.from_xml_string(_xml(spec))
    assert (model.ntex, model.nmesh) == (1, 1)
