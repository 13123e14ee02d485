"""Trained policies as files that run without this library: raw MuJoCo coordinates in, actuator controls out.

A folder holds `policy.stablehlo` (JAX's portable form, `jax.export`), `model.xml` (the robot as it was trained) and
`policy.json` (rates, names, versions). To run it in MuJoCo's C engine, JAX and MuJoCo are enough:

    call = jax.export.deserialize(bytearray(Path("policy.stablehlo").read_bytes())).call
    ctrl, action = call(qpos, qvel, action, clock)  # float32 [nq] [nv] [U], int32 []; begin with zeros

once every `ctrl_dt` seconds, with `clock` counting these calls and `action` handed back at the next one.

Axes: U actuators.
"""

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import mujoco
from jaxtyping import Array, Float, Int

from nil_jax.evaluation import Policy
from nil_jax.rollout import ImitationEnv

PLATFORMS = ("cpu", "cuda", "tpu")
Controller = Callable[
    [Float[Array, " nq"], Float[Array, " nv"], Float[Array, " U"], Int[Array, ""]],
    tuple[Float[Array, " U"], Float[Array, " U"]],
]


def controller(env: ImitationEnv, policy: Policy) -> Controller:
    """The whole way from the state of the physics to the actuators, as one pure function.

    Args:
        env: of the policy.
        policy: a deterministic one.

    Returns:
        `(qpos, qvel, last_action, clock) -> (ctrl, action)`: `clock` counts control steps since the start that
        evaluations have, `ctrl` is what MuJoCo's actuators take (rad or N m), held until the next call.
    """
    robot, first_clock = env.env, env.first_pose()[2] * env.control_steps_per_tick

    def control(
        qpos: Float[Array, " nq"], qvel: Float[Array, " nv"], last_action: Float[Array, " U"], clock: Int[Array, ""]
    ) -> tuple[Float[Array, " U"], Float[Array, " U"]]:
        clock = first_clock + jnp.asarray(clock)[None]
        observation = env.observation(robot.observation(qpos, qvel, last_action)[None], clock)
        action, _ = policy(observation, jax.random.key(0))
        action = jnp.clip(action[0], -1.0, 1.0)
        targets = env.targets(clock + 1)
        return robot.control(action, None if targets is None else targets[0]), action

    return control


def export_policy(env: ImitationEnv, policy: Policy, folder: Path) -> None:
    """Writes a policy and its robot into a new folder.

    Raises:
        ValueError: The folder exists.
    """
    if folder.exists():
        raise ValueError(f"output: expected a folder that is not there yet, got {folder}")
    robot = env.env
    model = robot.mj_model
    shapes = [jax.ShapeDtypeStruct((size,), jnp.float32) for size in (model.nq, model.nv, model.nu)]
    clock = jax.ShapeDtypeStruct((), jnp.int32)
    exported = jax.export.export(jax.jit(controller(env, policy)), platforms=PLATFORMS)(*shapes, clock)
    qpos, qvel, _ = env.first_pose()
    about = {
        "robot": robot.spec.name,
        "ctrl_dt": robot.dt,
        "substeps": robot.config.n_substeps,
        "start_qpos": qpos.tolist(),
        "start_qvel": qvel.tolist(),
        "joints": list(robot.joint_names),
        "actuators": [model.actuator(i).name for i in range(model.nu)],
        "inputs": ["qpos", "qvel", "action of the call before (at first zeros)", "calls before this one"],
        "outputs": ["ctrl", "action"],
        "platforms": list(PLATFORMS),
        "versions": {name: importlib.metadata.version(name) for name in ("nil-jax", "jax", "mujoco")},
    }
    folder.mkdir(parents=True)
    (folder / "policy.stablehlo").write_bytes(exported.serialize())
    (folder / "model.xml").write_text(_xml(robot.mj_spec))
    (folder / "policy.json").write_text(json.dumps(about, indent=2) + "\n")


def _xml(spec: mujoco.MjSpec) -> str:
    """The model; meshes and textures stay where they are and are named by their whole paths."""
    copy = spec.copy()
    if spec.meshes:
        copy.meshdir = str(Path(spec.modelfiledir, spec.meshdir).resolve())
    if any(texture.file for texture in spec.textures):
        copy.texturedir = str(Path(spec.modelfiledir, spec.texturedir).resolve())
    copy.compile()
    return copy.to_xml()
