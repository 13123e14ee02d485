"""One registry from a name to one `RobotSpec`, and `make`, which turns a name or a path into an environment."""

import dataclasses
import difflib
import os
from importlib import resources
from pathlib import Path
from typing import Any

import mujoco

from nil_jax.envs.model_files import check_model
from nil_jax.envs.robot import EnvConfig, RobotEnv, RobotSpec

MENAGERIE_PREFIX = "menagerie:"

EMBEDDED = {
    spec.name: spec
    for spec in (
        RobotSpec(
            "ant",
            "embedded",
            body="quadruped",
            stiffness={"": 300.0},
            fall_height=0.4,
            target_velocity=0.5,
        ),
        RobotSpec(
            "talos",
            "embedded",
            body="humanoid",
            stiffness={"wr": 40.0, "arm": 150.0, "": 1200.0},
        ),
        RobotSpec(
            "unitree_a1",
            "embedded",
            body="quadruped",
            stiffness={"": 60.0},
            fall_height=0.4,
            target_velocity=0.5,
            action_scale=0.2,
        ),
        RobotSpec(
            "unitree_g1",
            "embedded",
            body="humanoid",
            stiffness={"wrist": 10.0, "elbow": 40.0, "shoulder": 40.0, "": 300.0},
        ),
        RobotSpec(
            "unitree_h1",
            "embedded",
            body="humanoid",
            # With these it stands by itself; with an ankle as soft as its torque limit suggests every push fells it.
            stiffness={"ankle": 250.0, "hip_pitch": 300.0, "knee": 300.0, "shoulder": 80.0, "elbow": 60.0},
        ),
    )
}


def robots() -> dict[str, RobotSpec]:
    """All robots that have a name: the embedded ones, and those of MuJoCo Menagerie (fetched on first use)."""
    import mujoco_menagerie

    found = dict(EMBEDDED)
    for robot in mujoco_menagerie.robots():
        if robot.category not in ("humanoid", "quadruped", "biped"):
            continue
        known = EMBEDDED.get(robot.name, RobotSpec(robot.name, ""))
        name = MENAGERIE_PREFIX + robot.name
        found[name] = dataclasses.replace(
            known, name=name, source="mujoco-menagerie", body=robot.category, start_pose=_walk_pose(robot.name)
        )
    return found


def make(name: str | Path, config: EnvConfig | None = None, **overrides: Any) -> RobotEnv:
    """The environment of a robot.

    Args:
        name: an embedded robot ("unitree_h1"), a robot of MuJoCo Menagerie ("menagerie:unitree_h1", or its bare name
            where no embedded robot has it), or the path of any MJCF file (.xml) that holds one robot facing +x. The
            files that it names have to lie in its folder, or in that of the environment variable NIL_JAX_MODEL_ROOT.
        config: physics and control.
        **overrides: single fields of `config`, as in `make("unitree_h1", ctrl_dt=0.01)`.

    Raises:
        ValueError: unknown name (the nearest ones are listed), unreadable file, or a model that cannot be prepared.
    """
    config = dataclasses.replace(config or EnvConfig(), **overrides)
    return RobotEnv(*_find(str(name)), config)


def _find(name: str) -> tuple[RobotSpec, mujoco.MjSpec]:
    if name in EMBEDDED:
        return EMBEDDED[name], _embedded_model(name)
    if name.endswith((".xml", ".mjcf")):
        return _from_file(Path(name))
    known = robots()
    spec = known.get(name) or known.get(MENAGERIE_PREFIX + name)
    if spec is None:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or list(EMBEDDED)
        raise ValueError(
            f"robot: expected a known name or the path of an .xml file, got {name!r}; nearest: {', '.join(near)} "
            "(type: nil-jax robots)"
        )
    return spec, _menagerie_model(spec.name.removeprefix(MENAGERIE_PREFIX))


def _from_file(path: Path) -> tuple[RobotSpec, mujoco.MjSpec]:
    if not path.is_file():
        raise ValueError(f"robot: expected the path of an MJCF file, got {path}, which is not there")
    return RobotSpec(path.stem, str(path.resolve())), _parse(path)


def _parse(path: Path) -> mujoco.MjSpec:
    path = Path(os.path.abspath(path))  # from a relative path MuJoCo finds other files than the check
    check_model(path)
    try:
        spec = mujoco.MjSpec.from_file(str(path))
    except (ValueError, RuntimeError, MemoryError, mujoco.FatalError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"robot: expected a valid MJCF in {path}, got an error: {reason}") from None
    for sensor in list(spec.sensors):  # nothing here reads them, and one may hold any number of values
        spec.delete(sensor)
    return spec


def _embedded_model(name: str) -> mujoco.MjSpec:
    return mujoco.MjSpec.from_string((resources.files("nil_jax.envs") / "assets" / f"{name}.xml").read_text())


def _menagerie_model(name: str) -> mujoco.MjSpec:
    import mujoco_menagerie

    robot = mujoco_menagerie.get(name)
    try:
        path = robot.xml(robot.default_model)
    except (mujoco_menagerie.MenagerieError, OSError) as error:
        raise ValueError(
            f"robot: expected to read {name!r} of MuJoCo Menagerie, got: {' '.join(str(error).split())}; "
            "without a network, set MENAGERIE_ROOT to a folder of its models"
        ) from None
    return _parse(path)


def _walk_pose(name: str) -> dict[str, float]:
    """The mid-stride pose of the embedded robot of this name, by joint, for the same robot from another source."""
    if name not in EMBEDDED:
        return {}
    model = _embedded_model(name).compile()
    walk = model.key("walk").qpos
    return {model.joint(j).name: float(walk[model.jnt_qposadr[j]]) for j in range(1, model.njnt)}
