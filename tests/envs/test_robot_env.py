"""The robot environment against MuJoCo's C engine, and the wrappers against loops."""

import copy

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from mujoco import mjx

from nil_jax import envs
from nil_jax.envs import AutoResetWrapper, EnvConfig, VmapWrapper, physics
from nil_jax.envs.base import KEY, POOL
from nil_jax.envs.robot import RobotSpec, locomotion_reward, rotation_matrix

# MJX computes in float32, MuJoCo in float64. Free flight agrees to some 1e-7; feet that just touch the floor are in
# contact or not by rounding, which is worth some 1e-4 m.
TRAJECTORY_TOLERANCE = {"in the air": 1e-5, "on the floor": 1e-3}
KINEMATICS_TOLERANCE = 1e-5  # m, float32 over a chain of a few bodies


@pytest.fixture(scope="module")
def stepped(tiny_env):
    step = jax.jit(tiny_env.step)
    return step, jax.jit(tiny_env.reset)


@pytest.mark.parametrize("function", [physics.step, physics.kinematics])
def test_no_matrix_of_the_physics_is_multiplied_in_fewer_bits_on_a_gpu(tiny_env, function):
    program = function.lower(tiny_env.mjx_model, mjx.make_data(tiny_env.mjx_model)).as_text()
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert products or function is physics.kinematics
    assert all("HIGHEST, HIGHEST" in line for line in products)


@pytest.mark.parametrize(("where", "height", "amplitude"), [("in the air", 1.0, 0.5), ("on the floor", 0.0, 0.0)])
def test_steps_follow_the_c_engine(tiny_env, stepped, where, height, amplitude):
    step, reset = stepped
    state = reset(jax.random.key(0))
    state = state.replace(data=state.data.replace(qpos=state.data.qpos.at[2].add(height)))
    data = mujoco.MjData(tiny_env.mj_model)
    data.qpos[:], data.qvel[:] = state.data.qpos, state.data.qvel
    rng = np.random.default_rng(0)
    for _ in range(5):
        action = rng.uniform(-amplitude, amplitude, 2).astype(np.float32)
        state = step(state, jnp.asarray(action))
        data.ctrl[:] = tiny_env.default_qpos[7:] + tiny_env.action_scale * action
        for _ in range(tiny_env.config.n_substeps):
            mujoco.mj_step(tiny_env.mj_model, data)
    np.testing.assert_allclose(state.data.qpos, data.qpos, atol=TRAJECTORY_TOLERANCE[where])


def test_frames_belong_to_the_pose_and_not_to_the_one_before(tiny_env, stepped):
    step, reset = stepped
    state = step(reset(jax.random.key(0)), jnp.array([1.0, -1.0]))
    data = mujoco.MjData(tiny_env.mj_model)
    data.qpos[:] = state.data.qpos
    mujoco.mj_kinematics(tiny_env.mj_model, data)
    np.testing.assert_allclose(state.data.geom_xpos, data.geom_xpos, atol=KINEMATICS_TOLERANCE)


def test_reset_takes_a_pose_without_a_velocity_and_puts_its_feet_on_the_floor(tiny_env):
    pose = jnp.asarray(tiny_env.default_qpos).at[7:].set(jnp.array([0.5, -0.4]))
    data = jax.jit(tiny_env.reset)(jax.random.key(0), pose).data
    np.testing.assert_allclose(data.qpos[7:], pose[7:], atol=tiny_env.config.reset_noise)
    np.testing.assert_allclose(data.qvel, 0, atol=tiny_env.config.reset_noise)
    model, found, feet = tiny_env.mj_model, mujoco.MjData(tiny_env.mj_model), tiny_env.foot_geom_ids
    found.qpos[:] = data.qpos
    mujoco.mj_kinematics(model, found)
    slope = found.geom_xmat[feet, 8] * model.geom_size[feet, 1]  # from the middle of a capsule to its end
    ends = found.geom_xpos[feet, 2] + np.array([[-1], [1]]) * slope - model.geom_size[feet, 0]
    assert abs(ends.min()) < KINEMATICS_TOLERANCE and np.ptp(ends) > 0.05


def test_observation_has_the_stated_parts(tiny_env, stepped):
    state = stepped[1](jax.random.key(2))
    qpos, qvel = np.asarray(state.data.qpos), np.asarray(state.data.qvel)
    expected = [qpos[7:] - tiny_env.default_qpos[7:], qvel[6:], [0, 0, -1], qpos[2:3], qvel[:3], qvel[3:6]]
    expected += [[1, 0], qpos[1:2], [0, 0]]
    np.testing.assert_allclose(state.obs, np.concatenate(expected), atol=1e-6)
    assert state.obs.shape == (tiny_env.observation_size,)


def test_velocity_is_seen_in_the_heading_frame(tiny_env, stepped):
    state = stepped[1](jax.random.key(3))
    half = np.pi / 4  # facing +y
    qpos = state.data.qpos.at[3:7].set(jnp.array([np.cos(half), 0, 0, np.sin(half)]))
    qvel = state.data.qvel.at[:3].set(jnp.array([0.0, 2.0, 0.0]))
    obs = tiny_env.observation(qpos, qvel, jnp.zeros(2))
    np.testing.assert_allclose(obs[8:13], [2, 0, 0, *qvel[3:5]], atol=1e-5)  # forward, left, up; then turning
    np.testing.assert_allclose(obs[14:16], [0, 1], atol=1e-5)  # cos and sin of the heading


def test_rotation_matrix_equals_mujocos():
    quat = np.array([0.5, -0.1, 0.7, 0.3])
    quat /= np.linalg.norm(quat)
    expected = np.zeros(9)
    mujoco.mju_quat2Mat(expected, quat)
    np.testing.assert_allclose(rotation_matrix(jnp.asarray(quat)), expected.reshape(3, 3), atol=1e-6)


def test_a_reward_of_ones_own_replaces_the_robots_and_pays_no_fall(tiny_env):
    env = tiny_env.with_start(tiny_env.start_qpos).with_reward(lambda state: 3.0 + state.data.qpos[2])
    state = jax.jit(env.reset)(jax.random.key(0))
    np.testing.assert_allclose(state.reward, 3.0 + state.data.qpos[2], rtol=1e-6)
    lying = jnp.asarray(env.start_qpos).at[3:7].set(jnp.array([0.0, 1.0, 0.0, 0.0]))
    fallen = jax.jit(env.reset)(jax.random.key(0), lying, jnp.zeros(env.mj_model.nv))
    assert fallen.terminated and fallen.reward == 0.0
    assert tiny_env._own_reward is None


def test_the_robots_own_reward_is_that_of_locomujoco():
    human, dog = (RobotSpec("it", "embedded", body=b, target_velocity=v) for b, v in (("", 1.25), ("quadruped", 0.5)))
    for spec, velocity, exponent in (
        (human, (1.25, 0.7), 0.0),
        (human, (0.25, 0.0), -1.0),
        (human, (3.25, 0.0), -4.0),
        (dog, (0.5, 0.0), 0.0),
        (dog, (0.3, 0.0), -1.0),
        (dog, (0.8, -0.4), -2.5),
    ):
        np.testing.assert_allclose(locomotion_reward(spec, jnp.array(velocity)), np.exp(exponent), rtol=1e-5)


@pytest.mark.parametrize(("part", "fallen"), [(0.65, False), (0.55, True)])
def test_a_base_that_is_low_is_a_fall_though_it_is_upright(tiny_env, stepped, part, fallen):
    state = stepped[1](jax.random.key(0))
    low = state.data.replace(qpos=state.data.qpos.at[2].set(part * tiny_env.standing_height))
    assert bool(tiny_env._state(low, state.info, {}).terminated) == fallen


def test_lying_down_is_a_fall(tiny_env, stepped):
    state = stepped[1](jax.random.key(0))
    half = np.pi / 4
    data = state.data.replace(qpos=state.data.qpos.at[3:7].set(jnp.array([np.cos(half), np.sin(half), 0, 0])))
    assert not bool(state.terminated)
    assert bool(stepped[0](state.replace(data=data), jnp.zeros(2)).terminated)


def test_a_nan_in_the_physics_ends_the_episode_and_stays_out_of_the_outputs(tiny_env, stepped):
    state = stepped[1](jax.random.key(0))
    state = stepped[0](state.replace(data=state.data.replace(qvel=state.data.qvel * jnp.nan)), jnp.zeros(2))
    assert bool(state.terminated)
    assert np.isfinite(state.obs).all() and float(state.reward) == 0.0
    assert float(state.metrics["physics_diverged"]) == 1.0


def test_a_foot_that_is_dragged_slips(tiny_env, stepped):
    step, reset = stepped
    state = reset(jax.random.key(0))
    standing = step(state, jnp.zeros(2))
    data = state.data.replace(qvel=state.data.qvel.at[0].set(1.0))
    dragged = step(state.replace(data=data), jnp.zeros(2))
    assert float(standing.metrics["foot_slip_speed"]) < 0.1 < float(dragged.metrics["foot_slip_speed"])


def test_a_foot_touches_the_floor_where_mujoco_has_a_contact_and_for_a_whole_step(tiny_env, stepped):
    step, reset = stepped
    state = step(reset(jax.random.key(0)), jnp.zeros(2))
    data = mujoco.MjData(tiny_env.mj_model)
    for height in (0.0, 0.004):
        data.qpos[:], data.qpos[2] = state.data.qpos, state.data.qpos[2] + height
        mujoco.mj_forward(tiny_env.mj_model, data)
        raised = state.data.replace(qpos=jnp.asarray(data.qpos, jnp.float32), qvel=jnp.zeros_like(state.data.qvel))
        found = tiny_env._state(mjx.kinematics(tiny_env.mjx_model, raised), state.info, {})
        assert bool(found.info["foot_contact"].max()) == (data.ncon > 0) == (height == 0)
    landed = step(state.replace(info=state.info | {"foot_height": state.info["foot_height"] + 0.05}), jnp.zeros(2))
    assert not np.asarray(landed.info["foot_contact"]).any() and not float(landed.metrics["foot_slip_speed"])


def test_batched_reset_and_restart_keep_the_true_last_observation(tiny_path):
    env = envs.make(tiny_path, episode_length=3)
    batch = AutoResetWrapper(VmapWrapper(env))
    state = jax.jit(batch.reset)(jax.random.split(jax.random.key(0), 4))
    first = np.asarray(state.info[POOL].obs)
    step = jax.jit(batch.step)
    for _ in range(2):
        state = step(state, jnp.full((4, 2), 0.3))
        np.testing.assert_array_equal(state.obs, state.info["final_obs"])
    plain = jax.jit(jax.vmap(env.step))
    inner = {name: state.info[name] for name in state.info if name not in (POOL, KEY, "final_obs")}
    expected = plain(state.replace(info=inner), jnp.full((4, 2), 0.3))
    state = step(state, jnp.full((4, 2), 0.3))
    assert bool(state.truncated.all()) and not bool(state.terminated.any())
    np.testing.assert_allclose(state.info["final_obs"], expected.obs, atol=1e-6)
    assert all((row == first).all(axis=1).any() for row in np.asarray(state.obs))
    assert int(state.info["step"].max()) == 0


def test_step_is_compiled_once(tiny_env):
    traces = []

    @jax.jit
    def step(state, action):
        traces.append(1)
        return tiny_env.step(state, action)

    state = jax.jit(tiny_env.reset)(jax.random.key(0))
    for value in (0.0, 0.5, 1.0):
        state = step(state, jnp.full(2, value))
    assert len(traces) == 1


def test_torque_actuation_applies_the_scaled_limit(tiny_path):
    env = envs.make(tiny_path, actuation="torque")
    state = jax.jit(env.reset)(jax.random.key(0))
    state = jax.jit(env.step)(state, jnp.array([0.5, -1.0]))
    np.testing.assert_allclose(state.info["torque"], [15.0, -30.0], rtol=1e-5)


@pytest.fixture(scope="module")
def varied(tiny_env):
    """The tiny robot with domain randomisation, and 16 first states."""
    env = envs.make(
        tiny_env.spec.handle,
        config=tiny_env.config,
        mass_spread=0.2,
        friction_spread=0.5,
        gain_spread=0.3,
        latency=0.02,
    )
    return env, jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), 16))


def test_episodes_differ_in_their_physics_within_the_spreads(varied, tiny_env):
    env, states = varied
    for name, nominal, spread in (
        ("body_mass", env.mj_model.body_mass, 0.2),
        ("geom_friction", env.mj_model.geom_friction, 0.5),
        ("actuator_gainprm", env.mj_model.actuator_gainprm, 0.3),
    ):
        known = nominal != 0
        share = np.asarray(states.info[f"world/{name}"])[:, known] / nominal[known] - 1
        assert (np.abs(share) <= spread + 1e-5).all() and np.ptp(share[:, 0]) > spread
    latency = np.asarray(states.info["world/latency"])
    assert (latency >= 0).all() and (latency <= 0.02).all() and np.ptp(latency) > 0.01
    assert not any(name.startswith("world/") for name in tiny_env.reset(jax.random.key(0)).info)
    assert not any(name.startswith("world/") for name in env.nominal().reset(jax.random.key(0)).info)


def test_a_varied_robot_moves_as_the_c_engine_says(varied):
    env, states = varied
    latest = 0.95 * env.config.ctrl_dt  # comes too late for every substep of its own control step
    states.info["world/latency"] = states.info["world/latency"].at[1].set(latest)
    actions, step = jnp.array([[0.7, -0.5], [-0.6, 0.4], [0.2, 0.9]]), jax.jit(env.step)
    for index in range(2):
        state = jax.tree.map(lambda leaf, i=index: leaf[i], states)
        # 2 mm in the floor: feet that just touch it do so in single or in double precision, but not in both.
        state = state.replace(data=state.data.replace(qpos=state.data.qpos.at[2].add(-2e-3)))
        model = copy.deepcopy(env.mj_model)
        for name in ("body_mass", "body_inertia", "geom_friction", "actuator_gainprm", "actuator_biasprm"):
            getattr(model, name)[:] = state.info[f"world/{name}"]
        data = mujoco.MjData(model)
        data.qpos[:], data.qvel[:] = state.data.qpos, state.data.qvel
        ctrl = np.asarray(state.data.ctrl)
        for action in actions:
            state = step(state, action)
            for substep in range(env.config.n_substeps):
                late = substep * env.config.sim_dt < float(state.info["world/latency"])
                data.ctrl[:] = ctrl if late else env.control(action)
                mujoco.mj_step(model, data)
            ctrl = np.asarray(env.control(action))
        np.testing.assert_allclose(state.data.qpos[7:], data.qpos[7:], atol=2e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mass_spread": 1.0}, r"mass_spread: expected a number in \[0, 1\), got 1.0"),
        ({"latency": 0.1}, "latency: expected at most one control step"),
        ({"gain_spread": 0.1, "physics": "warp"}, 'expected "jax" with domain randomisation'),
    ],
)
def test_randomisation_out_of_range_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        EnvConfig(**settings)
