"""The embedded robots against the real ones: silhouette, joint tree, masses, keyframes. Oracle: MuJoCo's C engine."""

import importlib.util
from functools import cache
from pathlib import Path

import mujoco
import numpy as np
import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "silhouette.py"

# Servo gains (N m/rad, N m s/rad) that hold the standing pose; the first key that a joint's name contains is used.
GAINS = {
    "unitree_h1": {
        "hip_yaw": (200, 5),
        "hip_roll": (200, 5),
        "hip_pitch": (300, 8),
        "knee": (300, 8),
        "ankle": (250, 8),
        "torso": (200, 5),
        "shoulder": (80, 3),
        "elbow": (60, 2),
    },
    "unitree_a1": {"joint": (60, 1.5)},
}
STANDING_SECONDS = 2.0
DRAWN_GEOMS_AT_MOST = {"unitree_h1": 28, "unitree_a1": 26}  # each geom costs render time

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
    return _real_model(request.getfixturevalue(robot.source) / robot.path)


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


def test_joints_are_those_of_the_real_robot(embedded, real):
    assert _hinges(embedded) == _hinges(real)
    for name in _hinges(embedded):
        ours, theirs = embedded.joint(name), real.joint(name)
        np.testing.assert_allclose(ours.axis, theirs.axis, atol=1e-6)
        np.testing.assert_allclose(ours.range, theirs.range, atol=1e-6)
        for quantity in ("dof_damping", "dof_armature", "dof_frictionloss"):
            value = getattr(embedded, quantity)[ours.dofadr[0]]
            np.testing.assert_allclose(value, getattr(real, quantity)[theirs.dofadr[0]], err_msg=f"{name} {quantity}")


def test_motors_have_the_torque_limits_of_the_real_robot(embedded, real):
    def limits(model):
        joints = [model.joint(joint).name for joint in model.actuator_trnid[:, 0]]
        return dict(zip(joints, model.actuator_ctrlrange[:, 1] * model.actuator_gear[:, 0], strict=True))

    ours, theirs = limits(embedded), limits(real)
    assert list(ours) == _hinges(embedded) and ours.keys() == theirs.keys()
    for name, limit in ours.items():
        assert limit == pytest.approx(theirs[name], rel=TORQUE_TOLERANCE), name


def _inertia(model: mujoco.MjModel, body: str) -> np.ndarray:
    """Inertia tensor of a body about its own centre of mass, in the body's frame, [3, 3] kg m^2."""
    axes = np.zeros(9)
    mujoco.mju_quat2Mat(axes, model.body(body).iquat)
    axes = axes.reshape(3, 3)
    return axes @ np.diag(model.body(body).inertia) @ axes.T


def test_masses_and_inertias_are_those_of_the_real_robot(embedded, real):
    assert embedded.body_mass.sum() == pytest.approx(real.body_mass.sum(), rel=MASS_TOLERANCE)
    for body in (embedded.body(index).name for index in range(1, embedded.nbody)):
        assert embedded.body(body).mass[0] == pytest.approx(real.body(body).mass[0], rel=MASS_TOLERANCE), body
        np.testing.assert_allclose(embedded.body(body).ipos, real.body(body).ipos, atol=ANCHOR_TOLERANCE, err_msg=body)
        theirs = _inertia(real, body)
        np.testing.assert_allclose(
            _inertia(embedded, body), theirs, atol=INERTIA_TOLERANCE * theirs.max(), err_msg=body
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
    spec = mujoco.MjSpec.from_string(silhouette.embedded_xml(robot.name))
    spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_PLANE, size=[0, 0, 0.1], contype=0, conaffinity=1)
    model = spec.compile()
    gains = GAINS[robot.name]
    stiffness, damping = np.array([next(gains[key] for key in gains if key in name) for name in _hinges(model)]).T
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, model.key("stand").id)
    target, height, limit = data.qpos[7:].copy(), data.qpos[2], model.actuator_ctrlrange[:, 1]
    for _ in range(round(STANDING_SECONDS / model.opt.timestep)):
        data.ctrl[:] = np.clip(stiffness * (target - data.qpos[7:]) - damping * data.qvel[6:], -limit, limit)
        mujoco.mj_step(model, data)
        assert data.qpos[2] > (1 - SAG) * height, f"fell after {data.time:.2f} s"
