"""Preparing models: layouts, feet, drawn geoms, limits; and the registry's messages."""

import jax
import mujoco
import numpy as np
import pytest

from nil_jax import envs
from nil_jax.envs.mjcf import prepare

SETTINGS = {"sim_dt": 0.004, "actuation": "position", "damping_per_stiffness": 0.03}

SPLIT_BASE = """
<mujoco>
  <compiler angle="radian"/>
  <worldbody>
    <light pos="0 0 3"/>
    <geom type="plane" size="1 1 .1"/>
    <body name="pelvis" pos="0 0 0.5">
      <joint name="tx" type="slide" axis="1 0 0"/>
      <joint name="tz" type="slide" axis="0 0 1"/>
      <joint name="tilt" type="hinge" axis="0 1 0"/>
      <geom type="box" size=".1 .1 .1" mass="2"/>
      <body name="leg" pos="0 0 -.1">
        <joint name="knee" axis="0 1 0" range="-1 1"/>
        <geom name="shell" type="capsule" fromto="0 0 0 0 0 -.3" size=".03" contype="0" conaffinity="0" mass="0"/>
        <geom name="hull" type="cylinder" fromto="0 0 0 0 0 -.35" size=".05" mass="1"/>
      </body>
    </body>
  </worldbody>
  <actuator><motor joint="knee" gear="50" ctrlrange="-0.8 0.8"/></actuator>
  <sensor><jointpos joint="tx"/></sensor>
  <keyframe><key qpos="0 0 0 0"/></keyframe>
</mujoco>
"""


@pytest.fixture(scope="module")
def split():
    return prepare(mujoco.MjSpec.from_string(SPLIT_BASE), **SETTINGS)


def test_a_base_of_slides_and_hinges_becomes_a_free_joint(split):
    assert split.mj_model.jnt_type[0] == mujoco.mjtJoint.mjJNT_FREE
    assert split.joint_names == ("knee",) and split.mj_model.nq == 8


def test_keyframes_keep_the_coordinates_of_the_robot_alone():
    door = '<body name="door" pos="2 0 1"><joint axis="0 0 1"/><geom type="box" size=".1 .1 .1" mass="2"/></body>'
    leg = '<joint name="knee" axis="0 1 0"/><geom type="capsule" fromto="0 0 0 0 0 -.3" size=".03" mass="1"/>'
    trunk = '<freejoint/><geom type="sphere" size=".1" mass="2"/>'
    robot = f'<body name="base" pos="0 0 .5">{trunk}<body name="leg">{leg}</body></body>'
    key = '<keyframe><key name="home" qpos="0 0 .6 1 0 0 0 .25 .5"/></keyframe>'
    text = f"<mujoco><worldbody>{robot}{door}</worldbody>{key}</mujoco>"
    prepared = prepare(mujoco.MjSpec.from_string(text), **SETTINGS)
    assert prepared.mj_model.nq == 8
    np.testing.assert_allclose(prepared.keyframes["home"], [0, 0, 0.6, 1, 0, 0, 0, 0.25])


def test_torque_limits_come_from_gear_and_control_range(split):
    np.testing.assert_allclose(split.torque_limit, [40.0])


BALL = "<geom size='.1'/>"
DEFAULTS = """
<mujoco>
  <default><geom condim="1"/><general gear="150"/><motor gear="150" ctrlrange="-1 1"/></default>
  <worldbody>
    <geom type="plane" size="1 1 .1" condim="3"/>
    <body name="pelvis" pos="0 0 0.5">
      <freejoint/>
      <geom name="geom_2" type="box" size=".1 .1 .1" mass="2"/>
      <body name="shin" pos="0 0 -.1">
        <joint name="knee" axis="0 1 0" range="-1 1"/>
        <geom type="capsule" fromto="0 0 0 0 0 -.2" size=".03"/>
        <body name="foot" pos="0 0 -.3"><geom type="sphere" size=".05"/></body>
      </body>
    </body>
  </worldbody>
  <actuator><{actuator}/></actuator>
</mujoco>
"""


@pytest.mark.parametrize("actuation", ["torque", "position"])
def test_class_defaults_of_a_model_do_not_reach_what_is_added(actuation):
    spec = mujoco.MjSpec.from_string(DEFAULTS.format(actuator='motor joint="knee"'))
    prepared = prepare(spec, **SETTINGS | {"actuation": actuation})
    np.testing.assert_allclose(prepared.torque_limit, [150.0])
    np.testing.assert_array_equal(prepared.mj_model.actuator_gear, [[1, 0, 0, 0, 0, 0]])
    data = mujoco.MjData(prepared.mj_model)
    data.qpos[:7] = [0, 0, 0.44, 1, 0, 0, 0]
    mujoco.mj_forward(prepared.mj_model, data)
    assert data.ncon == 1 and data.contact.dim == 3  # with friction


def test_a_foot_that_is_welded_to_the_last_moving_body_is_the_foot():
    prepared = prepare(mujoco.MjSpec.from_string(DEFAULTS.format(actuator='motor joint="knee"')), **SETTINGS)
    (foot,) = prepared.foot_geom_ids
    assert prepared.mj_model.body(prepared.mj_model.geom_bodyid[foot]).name == "foot"


def test_a_geared_servo_keeps_its_stiffness():
    text = DEFAULTS.format(actuator='position joint="knee" kp="2" gear="10"')
    prepared = prepare(mujoco.MjSpec.from_string(text), **SETTINGS)
    np.testing.assert_allclose(prepared.mj_model.actuator_gainprm[0, 0], 2 * 10**2)  # N m / rad


def test_a_leg_without_round_feet_gets_spheres_at_the_corners_of_its_sole(split):
    model = split.mj_model
    assert len(split.foot_geom_ids) == 4
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    bottoms = data.geom_xpos[split.foot_geom_ids, 2] - model.geom_size[split.foot_geom_ids, 0]
    np.testing.assert_allclose(bottoms, 0.5 - 0.1 - 0.35, atol=1e-6)


def test_only_feet_and_floor_collide(split):
    model = split.mj_model
    touching = np.flatnonzero(model.geom_contype | model.geom_conaffinity)
    assert set(touching) == {*split.foot_geom_ids.tolist(), split.floor_geom_id}


def test_a_body_with_visual_geoms_is_drawn_by_those_alone(split):
    drawn = {split.mj_model.geom(g).name for g in split.robot_geom_ids}
    assert "shell" in drawn and "hull" not in drawn


@pytest.mark.parametrize("name", ["unitree_h1", "unitree_a1"])
def test_embedded_robots_stand_in_mjx_for_two_seconds(name):
    env = envs.make(name)
    env = env.with_start(env.default_qpos)
    state = jax.jit(env.reset)(jax.random.key(0))

    @jax.jit
    def stand(state):
        action = jax.numpy.zeros(env.action_size)
        return jax.lax.scan(lambda s, _: (env.step(s, action), s.terminated), state, None, length=100)

    state, fallen = stand(state)
    assert not bool(fallen.any()) and not bool(state.terminated)


def test_menagerie_h1_has_the_layout_of_the_embedded_one(shared, monkeypatch):
    monkeypatch.setenv("MENAGERIE_ROOT", str(shared / "menagerie"))
    real, ours = envs.make("menagerie:unitree_h1"), envs.make("unitree_h1")
    assert real.joint_names == ours.joint_names
    np.testing.assert_allclose(real.torque_limit, ours.torque_limit)
    np.testing.assert_allclose(real.start_qpos[7:], ours.start_qpos[7:], atol=1e-6)
    assert real.fingerprint != ours.fingerprint
    assert (real.mj_model.geom_type[real.robot_geom_ids] == mujoco.mjtGeom.mjGEOM_MESH).all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unitree_h2", "nearest: .*unitree_h1"),
        ("nowhere.xml", "which is not there"),
    ],
)
def test_unknown_robots_are_answered_with_what_to_type(name, message):
    with pytest.raises(ValueError, match=message):
        envs.make(name)


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("<mujoco><worldbody><body><geom size='.1'/></body></worldbody></mujoco>", "robot with joints"),
        (f"<mujoco><worldbody><body><freejoint/>{BALL}</body></worldbody></mujoco>", "joints behind the base"),
        (f"<mujoco><worldbody><body><joint/>{BALL}</body></worldbody></mujoco>", "joints behind the base"),
        ("<mujoco><worldbody><body><joint/></body></worldbody></mujoco>", "MuJoCo compiles"),
        (f"<mujoco><worldbody><body>{BALL}<body><joint/></body></body></worldbody></mujoco>", "MuJoCo compiles"),
        ("<mujoco><worldbody", "valid MJCF"),
    ],
)
def test_models_that_are_no_robots_are_refused_in_one_line(tmp_path, xml, message):
    path = tmp_path / "bad.xml"
    path.write_text(xml)
    with pytest.raises(ValueError, match=message) as caught:
        envs.make(path)
    assert "\n" not in str(caught.value)


def test_a_foot_that_does_not_exist_is_refused(tiny_path):
    with pytest.raises(ValueError, match="feet: expected names of bodies"):
        envs.make(tiny_path, feet=("left", "hoof"))


@pytest.mark.parametrize(
    "fields", [{"ctrl_dt": 0.0}, {"sim_dt": 0.003}, {"actuation": "magic"}, {"reset_noise": -1.0}, {"fall_tilt": 0.0}]
)
def test_settings_out_of_range_are_refused(fields):
    with pytest.raises(ValueError, match=r"expected .* got"):
        envs.EnvConfig(**fields)
