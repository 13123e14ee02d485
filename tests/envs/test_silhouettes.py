"""The embedded robots against the real ones: silhouette, joint tree, masses, keyframes. Oracle: MuJoCo's C engine."""

import importlib.util
from functools import cache
from pathlib import Path

import mujoco
import numpy as np
import pytest

from nil_jax import envs

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "silhouette.py"

STANDING_SECONDS = dict.fromkeys(("ant", "talos", "unitree_a1", "unitree_g1"), 5.0)
STANDING_SECONDS["unitree_h1"] = 3.0  # it leans back slowly and falls after 4.5 s
TORQUE_SECONDS = 2.0
# Each geom costs render time.
DRAWN_GEOMS_AT_MOST = {"ant": 15, "talos": 42, "unitree_a1": 26, "unitree_g1": 40, "unitree_h1": 28}
# LocoMuJoCo's Talos has no rotors, and Menagerie's G1 damps its servos only.
ESTIMATED = {("talos", "dof_armature"), ("unitree_g1", "dof_damping")}

ANCHOR_TOLERANCE = 1e-3  # m; body positions are written with micrometres, so this only allows for typing errors
FOOT_TOLERANCE = 5e-3  # m; less than a foot sinks into the soft floor
MASS_TOLERANCE = 0.01  # of the total
INERTIA_TOLERANCE = 1e-3  # of the tensor's largest entry; the file holds six digits
TORQUE_TOLERANCE = 0.02  # relative; LocoMuJoCo rounds A1's 33.5 N m to 34
SAG = 0.1  # of the base height; servos give way a little under the robot's weight


def _load_benchmark():
    spec = importlib.util.spec_from_file_location("silhouette_benchmark", BENCHMARK)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


silhouette = _load_benchmark()
ROBOTS = {robot.name: robot for robot in silhouette.ROBOTS}


@cache
def _real_model(path: Path) -> mujoco.MjModel:
    return silhouette.real_model(path)


@pytest.fixture(params=sorted(ROBOTS))
def robot(request):
    return ROBOTS[request.param]


@pytest.fixture
def embedded(robot) -> mujoco.MjModel:
    return silhouette.embedded_model(robot.name)


@pytest.fixture
def real(robot, request) -> mujoco.MjModel:
    root = None if robot.source == "brax" else request.getfixturevalue(robot.source)
    path = silhouette.real_path(robot, root)
    if path is None:
        pytest.skip(f"MuJoCo Menagerie's {robot.name} is neither below {root} nor to be fetched")
    return _real_model(path)


def _lowest_foot_point(model: mujoco.MjModel, data: mujoco.MjData) -> float:
    """Lowest z of the contact geoms: spheres, and capsules along their own z axis."""
    lowest = np.inf
    for geom in np.flatnonzero(model.geom_contype):
        half = model.geom_size[geom, 1] if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_CAPSULE else 0.0
        z = data.geom_xpos[geom, 2] - abs(data.geom_xmat[geom, 8]) * half - model.geom_size[geom, 0]
        lowest = min(lowest, z)
    return lowest


def _hinges(model: mujoco.MjModel) -> list[str]:
    return [model.joint(joint).name for joint in range(1, model.njnt)]


def test_side_silhouette_matches_the_real_meshes(robot, embedded, real):
    values = silhouette.silhouette_iou(robot, embedded, real)
    assert values.mean() >= silhouette.REQUIRED_IOU, values


def test_drawn_geoms_are_few_and_touch_nothing(robot, embedded):
    drawn = embedded.geom_group == silhouette.EMBEDDED_GROUP
    assert 0 < drawn.sum() <= DRAWN_GEOMS_AT_MOST[robot.name]
    assert not embedded.geom_contype[drawn].any() and not embedded.geom_conaffinity.any()
    assert set(embedded.geom_group[~drawn]) == {3}


def test_joints_are_those_of_the_real_robot(robot, embedded, real):
    quantities = ("dof_damping", "dof_armature", "dof_frictionloss")
    known = [quantity for quantity in quantities if (robot.name, quantity) not in ESTIMATED]
    assert _hinges(embedded) == _hinges(real)
    for name in _hinges(embedded):
        ours, theirs = embedded.joint(name), real.joint(name)
        np.testing.assert_allclose(ours.axis, theirs.axis, atol=1e-6)
        np.testing.assert_allclose(ours.range, theirs.range, atol=1e-6)
        for quantity in known:
            value = getattr(embedded, quantity)[ours.dofadr[0]]
            np.testing.assert_allclose(value, getattr(real, quantity)[theirs.dofadr[0]], err_msg=f"{name} {quantity}")


def test_motors_have_the_torque_limits_of_the_real_robot(embedded, real):
    def limits(model):
        joints = model.actuator_trnid[:, 0]
        motors = model.actuator_ctrlrange[:, 1] * model.actuator_gear[:, 0]
        of_joints = model.jnt_actfrcrange[joints, 1]  # where the actuators are servos
        values = np.where(model.jnt_actfrclimited[joints], of_joints, motors)
        return dict(zip([model.joint(joint).name for joint in joints], values, strict=True))

    ours, theirs = limits(embedded), limits(real)
    assert list(ours) == _hinges(embedded) and ours.keys() == theirs.keys()
    for name, limit in ours.items():
        assert limit == pytest.approx(theirs[name], rel=TORQUE_TOLERANCE), name


def _inertia(model: mujoco.MjModel, body: int) -> np.ndarray:
    """Inertia tensor of a body about its own centre of mass, in the body's frame, [3, 3] kg m^2."""
    axes = np.zeros(9)
    mujoco.mju_quat2Mat(axes, model.body_iquat[body])
    axes = axes.reshape(3, 3)
    return axes @ np.diag(model.body_inertia[body]) @ axes.T


def test_masses_and_inertias_are_those_of_the_real_robot(embedded, real):
    assert embedded.body_mass.sum() == pytest.approx(real.body_mass.sum(), rel=MASS_TOLERANCE)
    assert (embedded.body_jntnum[1:] > 0).all()
    moved = {"base": (1, 1)} | {
        name: tuple(int(model.joint(name).bodyid[0]) for model in (embedded, real)) for name in _hinges(embedded)
    }
    for name, (ours, theirs) in moved.items():
        assert embedded.body_mass[ours] == pytest.approx(real.body_mass[theirs], rel=MASS_TOLERANCE), name
        np.testing.assert_allclose(
            embedded.body_ipos[ours], real.body_ipos[theirs], atol=ANCHOR_TOLERANCE, err_msg=name
        )
        expected = _inertia(real, theirs)
        np.testing.assert_allclose(
            _inertia(embedded, ours), expected, atol=INERTIA_TOLERANCE * expected.max(), err_msg=name
        )


def test_joint_anchors_follow_the_real_robot(embedded, real):
    rng = np.random.default_rng(1)
    for _ in range(20):
        pose = embedded.key("stand").qpos.copy()
        pose[:3] = rng.normal(size=3)
        pose[3:7] = rng.normal(size=4)
        pose[3:7] /= np.linalg.norm(pose[3:7])
        pose[7:] = rng.uniform(*embedded.jnt_range[1:].T)
        ours, theirs = silhouette.posed(embedded, pose), silhouette.posed(real, pose, embedded)
        for name in _hinges(embedded):
            np.testing.assert_allclose(ours.joint(name).xanchor, theirs.joint(name).xanchor, atol=ANCHOR_TOLERANCE)


@pytest.mark.parametrize("key", ["stand", "walk"])
def test_keyframe_puts_the_lowest_foot_on_the_floor(embedded, key):
    pose = embedded.key(key).qpos
    assert _lowest_foot_point(embedded, silhouette.posed(embedded, pose)) == pytest.approx(0, abs=FOOT_TOLERANCE)
    assert (pose[7:] >= embedded.jnt_range[1:, 0]).all() and (pose[7:] <= embedded.jnt_range[1:, 1]).all()
    assert np.linalg.norm(pose[3:7]) == pytest.approx(1, abs=1e-5)


def test_servos_hold_the_standing_pose(robot):
    env = envs.make(robot.name)
    model, data = env.mj_model, mujoco.MjData(env.mj_model)
    data.qpos[:] = env.default_qpos
    data.ctrl[:] = env.default_qpos[7:][env.prepared.actuated]
    for _ in range(round(STANDING_SECONDS[robot.name] / model.opt.timestep)):
        mujoco.mj_step(model, data)
        assert data.qpos[2] > (1 - SAG) * env.standing_height, f"fell after {data.time:.2f} s"


def test_random_torques_leave_the_physics_stable(robot):
    env = envs.make(robot.name, actuation="torque")
    data, rng = mujoco.MjData(env.mj_model), np.random.default_rng(0)
    data.qpos[:] = env.start_qpos
    for _ in range(round(TORQUE_SECONDS / env.dt)):
        data.ctrl[:] = rng.uniform(-1, 1, env.action_size) * env.torque_limit
        mujoco.mj_step(env.mj_model, data, env.config.n_substeps)
    diverged = [mujoco.mjtWarning.mjWARN_BADQPOS, mujoco.mjtWarning.mjWARN_BADQVEL, mujoco.mjtWarning.mjWARN_BADQACC]
    assert not any(data.warning[int(kind)].number for kind in diverged)
