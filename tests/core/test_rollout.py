"""Robot, renderer and reward together, against MuJoCo's kinematics and loops."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nil_jax
from nil_jax import evaluation, rewards
from nil_jax.envs import AutoResetWrapper, Body, State
from nil_jax.evaluation import _metrics, controls, run_episodes, summary, zero_action
from nil_jax.reference.motion import velocities
from nil_jax.rewards import Encoder, RewardConfig
from nil_jax.rollout import ImitationConfig, ImitationEnv, collect

NUM_ENVS = 3


def sine_policy_of(action_size):
    def policy(observation, key):
        del key
        return jnp.sin(jnp.arange(observation.shape[0], dtype=jnp.float32))[:, None] * jnp.ones((1, action_size)), {}

    return policy


sine_policy = sine_policy_of(2)


@pytest.fixture(scope="module")
def env(tiny_env, tiny_reference):
    return ImitationEnv(tiny_env, tiny_reference)


@pytest.fixture(scope="module")
def ticks(env):
    """Five ticks of a policy: the state before each tick, and what `collect` returned."""
    auto_env = AutoResetWrapper(env)
    state = jax.jit(auto_env.reset)(jax.random.split(jax.random.key(0), NUM_ENVS))
    traces = []

    @jax.jit
    def tick(state, key):
        traces.append(1)
        return collect(auto_env, sine_policy, state, key)

    rows = []
    for i in range(5):
        following, transitions, metrics = tick(state, jax.random.key(i))
        rows.append((state, following, transitions, metrics))
        state = following
    assert len(traces) == 1
    return rows


def test_episodes_start_at_the_reference_and_look_like_it(env, tiny_reference):
    state = jax.jit(env.reset)(jax.random.split(jax.random.key(0), NUM_ENVS))
    iou = rewards.mask_iou(env.masks(state), jnp.repeat(jnp.asarray(tiny_reference.masks[:1]), NUM_ENVS, axis=0))
    assert float(iou.min()) > 0.9  # all that differs is the noise of the reset, 0.02 rad


def test_a_tick_holds_all_its_control_steps_and_one_look(env, ticks):
    assert env.control_steps_per_tick == 2
    _, _, transitions, metrics = ticks[0]
    assert transitions.observation.shape == (NUM_ENVS, 2, env.observation_size)
    assert (np.asarray(metrics["reward/mask"])[0] == 0).all() and (np.asarray(metrics["reward/mask"])[1] > 0).all()


def test_image_terms_are_those_of_the_state_behind_the_tick(env, ticks, tiny_reference):
    for i, (_, following, _, metrics) in enumerate(ticks):
        ref = jnp.repeat(jnp.asarray(tiny_reference.masks[i + 1 : i + 2]), NUM_ENVS, axis=0)
        expected = rewards.mask_iou(env.masks(following), ref) * env.control_steps_per_tick
        np.testing.assert_allclose(metrics["reward/mask"][-1], expected, rtol=1e-6)


def test_reward_is_the_weighted_sum_of_the_logged_terms(env, ticks):
    config = env.reward
    _, _, transitions, metrics = ticks[2]
    terms = {name.removeprefix("reward/"): value for name, value in metrics.items() if name.startswith("reward/")}
    total = terms.pop("offset") + sum(config.weight(name) * value for name, value in terms.items())
    np.testing.assert_allclose(transitions.reward.T, total, rtol=1e-5)
    assert (np.asarray(transitions.reward) >= 0).all()


def test_transitions_chain_from_step_to_step(ticks):
    first, second = ticks[0][2], ticks[1][2]
    np.testing.assert_array_equal(first.next_observation[:, 0], first.observation[:, 1])
    np.testing.assert_array_equal(first.next_observation[:, 1], second.observation[:, 0])


def test_the_end_of_a_clip_has_no_future_and_keeps_the_phase(tiny_env, tiny_reference):
    short = dataclasses.replace(tiny_reference, frames=tiny_reference.frames[:3], masks=tiny_reference.masks[:3])
    auto_env = AutoResetWrapper(ImitationEnv(tiny_env, short))
    state = jax.jit(auto_env.reset)(jax.random.split(jax.random.key(0), NUM_ENVS))
    tick = jax.jit(lambda state, key: collect(auto_env, sine_policy, state, key))
    state, transitions, _ = tick(state, jax.random.key(0))
    assert (np.asarray(transitions.discount) == 1).all()
    state, transitions, metrics = tick(state, jax.random.key(1))
    assert (np.asarray(transitions.discount[:, 1]) == 0).all() and not np.asarray(metrics["fall"]).any()
    assert (np.asarray(state.info["clock"]) == 0).all()


def test_a_fall_between_ticks_restarts_in_phase(env):
    auto_env = AutoResetWrapper(env)
    state = jax.jit(auto_env.reset)(jax.random.split(jax.random.key(0), NUM_ENVS))
    half = np.pi / 4
    lying = state.data.qpos.at[0, 3:7].set(jnp.array([np.cos(half), np.sin(half), 0, 0]))
    state = state.replace(data=state.data.replace(qpos=lying))
    step = jax.jit(lambda state, tick: auto_env.step(state, jnp.zeros((NUM_ENVS, 2)), tick=tick))
    state = step(state, False)
    assert bool(state.terminated[0]) and not bool(state.terminated[1])
    assert float(state.reward[0]) == 0.0
    np.testing.assert_array_equal(state.info["clock"], [1, 1, 1])
    np.testing.assert_allclose(state.obs[:, -1], 1 / (env.clip_length * 2), rtol=1e-6)


def test_a_looping_reference_wraps_its_clock(tiny_env, tiny_reference):
    env = ImitationEnv(tiny_env, dataclasses.replace(tiny_reference, loop=True))
    clock = jnp.array([0, 2, 41, 42, 44])
    np.testing.assert_array_equal(env.frame_index(clock), [0, 1, 20, 0, 1])
    np.testing.assert_array_equal(ImitationEnv(tiny_env, tiny_reference).frame_index(clock), [0, 1, 20, 20, 20])
    robot = jnp.zeros((5, tiny_env.observation_size))
    seen = env.observation(robot, clock)
    np.testing.assert_allclose(seen[0], seen[3], atol=1e-5)  # a period later
    steps = np.diff(np.asarray(env.observation(robot[:1].repeat(43, 0), jnp.arange(43))), axis=0)
    assert np.linalg.norm(steps[-1]) < 1.01 * np.linalg.norm(steps, axis=1).mean()  # no jump where the loop closes


def test_episodes_start_anywhere_in_the_clip_with_the_speed_that_it_has_there(tiny_env, moving_reference):
    moving_reference = dataclasses.replace(moving_reference, loop=False)
    env = ImitationEnv(tiny_env, moving_reference, config=ImitationConfig(starts="anywhere"))
    state = jax.jit(env.reset)(jax.random.split(jax.random.key(0), 64))
    frame = np.asarray(state.info["clock"]) // env.control_steps_per_tick
    assert len(set(frame.tolist())) > 8 and (np.asarray(state.info["clock"]) % env.control_steps_per_tick == 0).all()
    noise = tiny_env.config.reset_noise
    still = np.asarray(state.info["catch_up"]) > 0
    assert 0 < still.sum() < (frame == 0).sum() < 32 and not frame[still].any()  # at rest, and at frame 0
    poses = np.where(still[:, None], tiny_env.default_qpos, moving_reference.motion[frame])
    np.testing.assert_allclose(state.data.qpos[:, 7:], poses[:, 7:], atol=noise)
    expected = velocities(tiny_env.mj_model, moving_reference.motion, 1 / 25)[frame]
    np.testing.assert_allclose(state.data.qvel, np.where(still[:, None], 0.0, expected), atol=noise + 1e-5)
    assert not np.asarray(state.data.qpos[:, 0]).any()
    iou = rewards.mask_iou(env.masks(state), jnp.asarray(moving_reference.masks[frame]))
    assert float(iou.mean()) > 0.85 and float(iou.min()) > 0.75  # reset noise, on 32 px
    first = env.from_the_start()
    state = jax.jit(first.reset)(jax.random.split(jax.random.key(0), 4))
    assert not np.asarray(state.info["clock"]).any()
    at_rest = jax.jit(env.from_the_start(at_rest=True).reset)(jax.random.split(jax.random.key(0), 4))
    assert abs(np.asarray(at_rest.data.qvel)).max() <= noise < abs(np.asarray(state.data.qvel)).max()


def test_a_loop_is_entered_from_rest_where_it_is_most_like_standing(tiny_env, moving_reference):
    rolled = dataclasses.replace(moving_reference, motion=np.roll(moving_reference.motion, 5, axis=0))  # there at first
    env = ImitationEnv(tiny_env, rolled, config=ImitationConfig(starts="anywhere"))
    state = jax.jit(env.reset)(jax.random.split(jax.random.key(0), 64))
    frame, still = np.asarray(state.info["clock"]) // env.control_steps_per_tick, np.asarray(state.info["catch_up"]) > 0
    assert still.any() and (frame[still] == 5).all() and len(set(frame.tolist())) > 12
    at_rest = jax.jit(env.from_the_start(at_rest=True).reset)(jax.random.split(jax.random.key(0), 2))
    np.testing.assert_array_equal(at_rest.info["clock"], 5 * env.control_steps_per_tick)


def test_a_fifth_of_the_environments_always_begins_at_rest(tiny_env, moving_reference):
    config = ImitationConfig(starts="anywhere", lost_pose=1e-6)  # what does not begin at rest falls in every step
    env = AutoResetWrapper(ImitationEnv(tiny_env, moving_reference, config=config))
    state, step = jax.jit(env.reset)(jax.random.split(jax.random.key(0), 64)), jax.jit(env.step)
    starts = set()
    for _ in range(60):  # longer than a start at rest may catch up
        still = np.asarray(state.info["catch_up"]) > 0
        np.testing.assert_array_equal(still, np.arange(64) < 13)
        starts |= set(np.asarray(state.data.qpos[13:, 7]).tolist())
        state = step(state, jnp.zeros((64, 2)))
    assert len(starts) == 51  # of the others: each of them


def test_targets_of_the_clip_are_followed_without_an_action(tiny_env, moving_reference):
    env = ImitationEnv(tiny_env, moving_reference, config=ImitationConfig(starts="first", targets="clip"))
    state = jax.jit(env.reset)(jax.random.split(jax.random.key(0), 2))
    step = jax.jit(env.step)
    servo, model = tiny_env.config.damping_per_stiffness, tiny_env.mj_model
    lag = servo + model.dof_damping[6:] / model.actuator_gainprm[:, 0]
    speed = velocities(model, moving_reference.motion, 1 / 25, loop=True)[:, 6:]
    for clock in range(5):  # from the reset on: what acts until a first action that comes late
        state = state if clock == 0 else step(state, jnp.zeros((2, 2)))
        low, part = divmod(clock, 2)
        joints = moving_reference.motion[:, 7:]
        expected = (1 - part / 2) * joints[low] + part / 2 * joints[low + 1]
        expected = expected + lag * ((1 - part / 2) * speed[low] + part / 2 * speed[low + 1])
        np.testing.assert_allclose(state.data.ctrl, np.tile(expected, (2, 1)), atol=1e-6)
    held = env.around_standing(np.array([True, False])).targets(jnp.array([5, 5]))
    np.testing.assert_array_equal(held, np.stack([tiny_env.default_qpos[7:], env.targets(jnp.array([5]))[0]]))


def test_a_robot_whose_mask_is_lost_counts_as_fallen(tiny_env, moving_reference):
    config = ImitationConfig(starts="first", lost_iou=0.99)
    env = ImitationEnv(tiny_env, moving_reference, config=config)
    state = jax.jit(env.reset)(jax.random.split(jax.random.key(0), 2))
    step = jax.jit(lambda state, tick: env.step(state, jnp.ones((2, 2)), tick=tick))
    between = step(state, False)
    assert not np.asarray(between.terminated).any()
    lost = step(between, True)
    assert np.asarray(lost.terminated).all() and not np.asarray(lost.reward).any()
    assert not np.asarray(jax.jit(env.from_the_start().step)(between, jnp.ones((2, 2))).terminated).any()


def test_motion_terms_and_lost_poses_are_those_of_the_keypoints(tiny_env, moving_reference):
    reward = RewardConfig(video_weight=0.0, travel_sideways=20.0)  # it hardly moves to the side
    env = ImitationEnv(tiny_env, moving_reference, reward, config=ImitationConfig(starts="first", lost_pose=0.1))
    state = jax.jit(env.reset)(jax.random.split(jax.random.key(0), 2))
    step, body = jax.jit(env.step), Body(tiny_env)
    points = body.keypoints(moving_reference.motion)
    ended = False
    for clock in range(1, 20):
        state = step(state, jnp.array([[0.0, 0.0], [1.0, -1.0]]))
        low, part = divmod(clock, 2)
        expected = (1 - part / 2) * points[low] + part / 2 * points[low + 1]
        found = body.keypoints(np.asarray(state.data.qpos))
        error = np.sqrt(np.square(found - expected).sum(-1).mean(-1))
        np.testing.assert_array_equal(state.terminated, error > 0.1)
        alive = error <= 0.1
        pose = np.where(alive, np.exp(-np.square(error / reward.pose_scale)), 0)
        np.testing.assert_allclose(state.metrics["reward/pose"], pose, rtol=1e-3)
        asked = np.diff(moving_reference.motion[:, 0]).mean() * 25
        assert asked < 0.5  # slow: errors count in halves of a metre per second
        forward, sideways = np.asarray(state.data.qvel)[:, :2].T
        off = np.hypot(forward - asked, 20 * sideways) / 0.5
        travel = np.where(alive, np.exp(-np.square(off / reward.travel_scale)), 0)
        np.testing.assert_allclose(state.metrics["reward/travel"], travel, rtol=1e-3)
        ended |= bool(state.terminated.any())
    assert ended
    at_rest = jax.jit(env.from_the_start(at_rest=True).step)(state, jnp.ones((2, 2)))
    assert not np.asarray(at_rest.terminated).any()


def test_a_robot_that_begins_at_rest_stands_and_has_time_to_catch_up(tiny_env, moving_reference):
    config = ImitationConfig(starts="rest", lost_pose=1e-3)
    env = ImitationEnv(tiny_env, moving_reference, RewardConfig(video_weight=0.0), config=config)
    state, step = jax.jit(env.reset)(jax.random.split(jax.random.key(0), 2)), jax.jit(env.step)
    np.testing.assert_allclose(state.data.qpos, [tiny_env.default_qpos] * 2, atol=tiny_env.config.reset_noise + 1e-3)
    assert (np.asarray(state.info["catch_up"]) == 50).all()  # 1 s
    state = step(state.replace(info=state.info | {"catch_up": jnp.array([2, 3])}), jnp.ones((2, 2)))
    assert not np.asarray(state.terminated).any() and np.asarray(state.reward > 0).all()
    np.testing.assert_array_equal(step(state, jnp.ones((2, 2))).terminated, [True, False])


def test_evaluations_from_rest_begin_where_they_say(tiny_env, moving_reference):
    rolled = dataclasses.replace(moving_reference, motion=np.roll(moving_reference.motion, 5, axis=0))  # standing at 5
    for starts, frame in (("rest", 5), ("anywhere", 0)):
        env = ImitationEnv(tiny_env, rolled, config=ImitationConfig(starts=starts))
        state = jax.jit(env.from_the_start().reset)(jax.random.split(jax.random.key(0), 1))
        pose, velocity, first = env.first_pose()
        assert first == frame and int(state.info["clock"][0]) == frame * env.control_steps_per_tick
        np.testing.assert_allclose(state.data.qpos[0], pose, atol=tiny_env.config.reset_noise + 1e-3)
        np.testing.assert_allclose(state.data.qvel[0], velocity, atol=tiny_env.config.reset_noise + 1e-5)


def test_without_a_motion_evaluations_begin_with_the_speed_of_the_settings(tiny_env, tiny_reference):
    moving = nil_jax.envs.make(tiny_env.spec.handle, tiny_env.config, reset_velocity=0.7)
    assert ImitationEnv(moving, tiny_reference).first_pose()[1][:2].tolist() == pytest.approx([0.7, 0.0])


def test_what_an_environment_has_is_not_given_again(tiny_env, tiny_reference):
    env, policy = ImitationEnv(tiny_env, tiny_reference), sine_policy_of(tiny_env.action_size)
    for given in ({"reference": tiny_reference}, {"reward": RewardConfig()}, {"config": ImitationConfig()}):
        with pytest.raises(ValueError, match=f"{next(iter(given))}: expected none beside an ImitationEnv"):
            nil_jax.evaluate(env, policy, **given)


def test_torques_have_no_pose_to_lie_around(tiny_env, moving_reference):
    robot = nil_jax.envs.make(tiny_env.spec.handle, tiny_env.config, actuation="torque")
    assert ImitationEnv(robot, moving_reference).config.targets == "stand"
    with pytest.raises(ValueError, match=r'targets: expected "stand" with torques.*type: --targets stand'):
        ImitationEnv(robot, moving_reference, config=ImitationConfig(targets="clip"))
    env = ImitationEnv(robot, moving_reference, RewardConfig.paper())
    state, action = jax.jit(env.reset)(jax.random.split(jax.random.key(0), 2)), np.array([[0.5, -1.0], [0.2, 2.0]])
    state = jax.jit(env.step)(state, jnp.asarray(action, jnp.float32))
    np.testing.assert_allclose(state.data.ctrl, robot.torque_limit * np.clip(action, -1, 1), rtol=1e-6)
    assert (np.asarray(state.reward) > 0).all()


class Seesaw(nil_jax.envs.Env):
    """An environment that tells nothing but what `Env` asks for: it ends where it has counted to three."""

    observation_size, action_size, dt, episode_length = 1, 1, 0.1, 6

    def reset(self, key):
        del key
        return self._state(jnp.zeros(()))

    def step(self, state, action):
        return self._state(state.data + 1 + 0 * action[0])

    def _state(self, count):
        return State(count, count[None], jnp.ones(()), count >= 3, jnp.zeros((), bool))


def test_an_environment_that_says_nothing_of_falls_has_them_where_it_ends():
    found = run_episodes(ImitationEnv(Seesaw(), None), {"any": sine_policy_of(1)}, 2, jax.random.key(0))["any"]
    np.testing.assert_array_equal(found.metrics["fall"], [1, 1])
    np.testing.assert_allclose(found.metrics["length"], [0.3, 0.3], rtol=1e-6)


def test_imitation_settings_out_of_range_are_refused(tiny_env, tiny_reference, moving_reference):
    for settings in ({"starts": "first"}, {"targets": "clip"}):
        with pytest.raises(ValueError, match="expected a reference with a motion, got one without"):
            ImitationEnv(tiny_env, tiny_reference, config=ImitationConfig(**settings))
    with pytest.raises(ValueError, match=r"lost_iou: expected a number in \[0, 1\), got 1.5"):
        ImitationConfig(lost_iou=1.5)
    with pytest.raises(ValueError, match="lost_pose: expected a number >= 0, got -1"):
        ImitationConfig(lost_pose=-1.0)
    fast = nil_jax.envs.make(tiny_env.spec.handle, tiny_env.config, reset_velocity=1.0)
    with pytest.raises(ValueError, match=r"reset_velocity: expected 0 with a reference that has a motion.*got 1.0"):
        ImitationEnv(fast, moving_reference)
    short = nil_jax.envs.make(tiny_env.spec.handle, tiny_env.config, episode_length=1)
    with pytest.raises(ValueError, match=r"episode_length: expected at least 2, .* got 1$"):
        ImitationEnv(short, moving_reference)
    without = ImitationEnv(tiny_env, tiny_reference)
    assert (without.config.starts, without.config.targets) == ("rest", "stand")
    assert without.reward.pose_weight == without.reward.travel_weight == 0


def fake_encoder(size: int = 8) -> Encoder:
    """Two numbers that a loop can check: how dark the newest frame is, and how much it differs from the oldest."""

    def embed(params, frames):
        dark = 255 - jnp.mean(frames.astype(jnp.float32), axis=(-3, -2, -1))
        return params * jnp.stack([dark[..., -1], dark[..., -1] - dark[..., 0]], axis=-1)

    return Encoder(jnp.float32(1.0), embed, 4, size, 2, "fake")


def test_video_term_compares_the_clip_that_ends_at_the_tick(tiny_env, tiny_reference):
    encoder = fake_encoder()._replace(similarity="l2", scale=3.0)  # which the reward takes where it names no other
    reference = nil_jax.with_embeddings(tiny_reference, encoder)
    env = ImitationEnv(tiny_env, reference, encoder=encoder)
    auto_env = AutoResetWrapper(env)
    state = jax.jit(auto_env.reset)(jax.random.split(jax.random.key(0), NUM_ENVS))
    tick = jax.jit(lambda state, key: collect(auto_env, sine_policy, state, key))
    clip = [np.asarray(state.info["clip"][:, -1])] * encoder.num_frames
    for i in range(3):
        state, _, metrics = tick(state, jax.random.key(i))
        clip = [*clip[1:], np.asarray(env.pictures(state.data, encoder.image_size))]
        z = encoder.embed(encoder.params, jnp.asarray(np.stack(clip, axis=1)))
        expected = np.exp(-np.linalg.norm(z - reference.embeddings["fake"][i + 1], axis=-1) / 3.0)
        np.testing.assert_allclose(metrics["reward/video"][-1] / 2, expected, rtol=1e-4)


@pytest.mark.parametrize("loop", [False, True])
def test_the_clip_of_a_new_episode_is_that_of_the_reference(tiny_env, moving_reference, loop):
    encoder = fake_encoder()
    reference = nil_jax.with_embeddings(dataclasses.replace(moving_reference, loop=loop), encoder)
    env = ImitationEnv(tiny_env, reference, encoder=encoder, config=ImitationConfig(starts="first"))
    clip = jax.jit(env.reset)(jax.random.split(jax.random.key(0), 2)).info["clip"]
    np.testing.assert_allclose(encoder.embed_kept(clip), reference.embeddings["fake"][[0, 0]], atol=2.0)  # of 255
    assert (abs(reference.embeddings["fake"][0, 1]) > 0.1) == loop  # before a loop's first frame stands its end


def test_without_an_encoder_the_video_term_is_off(env):
    assert env.reward.video_weight == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fps": 24.0}, "whole number of control steps"),
        ({"provenance": {"robot": "other", "fingerprint": "x"}}, "got one for other"),
    ],
)
def test_a_reference_that_does_not_fit_is_refused(tiny_env, tiny_reference, change, message):
    with pytest.raises(ValueError, match=message):
        ImitationEnv(tiny_env, dataclasses.replace(tiny_reference, **change))


def test_a_reference_without_embeddings_is_refused(tiny_env, tiny_reference):
    with pytest.raises(ValueError, match="with_embeddings"):
        ImitationEnv(tiny_env, tiny_reference, None, fake_encoder())


def test_evaluation_equals_a_loop_over_one_episode(env):
    policies = {"sine": sine_policy, **controls(2)}
    found = jax.device_get(jax.jit(lambda key: run_episodes(env, policies, NUM_ENVS, key))(jax.random.key(5)))
    rows = summary(found)
    key_reset = jax.random.split(jax.random.key(5), 3)[1]
    keys = jax.random.split(key_reset, 3 * NUM_ENVS)
    auto_env = AutoResetWrapper(env)
    state = jax.jit(auto_env.reset)(keys)
    step = jax.jit(lambda state, tick: auto_env.step(state, action, tick=tick))
    wanted = jnp.repeat(env.ref_masks[:, None], 3 * NUM_ENVS, axis=1)
    compare = jax.jit(lambda state, index: rewards.mask_iou(env.masks(state), wanted[index]))
    order = 1 + jax.random.permutation(jax.random.split(jax.random.key(5), 3)[0], env.clip_length - 1)
    action = jnp.concatenate([sine_policy(state.obs[:NUM_ENVS], None)[0], jnp.zeros((2 * NUM_ENVS, 2))])
    returns, alive, iou, shuffled = np.zeros(NUM_ENVS), np.ones(NUM_ENVS), np.zeros(NUM_ENVS), np.zeros(NUM_ENVS)
    for i in range(2 * (env.clip_length - 1)):
        state = step(state, i % 2 == 1)
        alive_before, alive = alive, alive * (1 - np.asarray(state.done[:NUM_ENVS]))
        returns += alive_before * np.asarray(state.reward[:NUM_ENVS])
        iou += alive * np.asarray(state.metrics["reward/mask"][:NUM_ENVS]) / 2
        shuffled += alive * np.asarray(compare(state, order[i // 2])[:NUM_ENVS]) * (i % 2)
    np.testing.assert_allclose(found["sine"].metrics["return"], returns, rtol=1e-4)
    np.testing.assert_allclose(found["sine"].metrics["mask_iou"], iou / (env.clip_length - 2), rtol=1e-4)
    np.testing.assert_allclose(found["sine"].metrics["mask_iou_shuffled"], shuffled / (env.clip_length - 2), rtol=1e-4)
    assert rows["zero action"]["fall"] == 0.0 and rows["zero action"]["length"] == pytest.approx(0.8)
    assert rows["zero action"]["mask_iou"] > rows["random policy"]["mask_iou"]


def test_measures_equal_numpy_over_the_first_episode(env):
    """The first robot falls in the sixth step; behind it another episode has begun."""
    rng = np.random.default_rng(0)
    names = ("reward", "forward_velocity", "foot_slip_speed", "locomotion")
    rows = {name: rng.random((10, 2), np.float32) for name in names}
    rows |= {"reward/torque": -rng.random((10, 2), np.float32), "joint_velocity": rng.random((10, 2, 3), np.float32)}
    rows["done"] = np.zeros((10, 2), bool)
    rows["done"][[5, 7], 0] = True
    found = _metrics(jax.tree.map(jnp.asarray, rows | {"fall": rows["done"].astype(np.float32)}), env)
    for i, steps in enumerate((6, 10)):
        own = {name: row[:steps, i] for name, row in rows.items()}
        expected = {
            "return": own["reward"].sum(),
            "length": steps * 0.02,
            "fall": steps < 10,
            "distance": own["forward_velocity"].sum() * 0.02,
            "speed": own["forward_velocity"].mean(),
            "foot_slip": own["foot_slip_speed"].mean(),
            "locomotion": 400 * own["locomotion"].sum() / 10,
            "torque": np.sqrt(-own["reward/torque"].mean()),
            "jerk": np.sqrt(np.square(np.diff(own["joint_velocity"], n=2, axis=0) / 0.02**2).mean()),
        }
        assert set(found) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name][i], value, rtol=1e-4, err_msg=name)


def test_evaluate_begins_at_rest_where_it_is_asked_to(tiny_env, moving_reference, monkeypatch):
    begun = []
    monkeypatch.setattr(evaluation, "compiled_episodes", lambda env, *_: begun.append(env.config.starts) or {})
    for at_rest in (False, True):
        nil_jax.evaluate(ImitationEnv(tiny_env, moving_reference), sine_policy, at_rest=at_rest)
    assert begun == ["first", "rest"]


@pytest.mark.parametrize("ends", [True, False])
def test_masks_that_always_fit_have_an_iou_of_one(env, ends):
    """Also of an episode whose time is over between two looks, so that none of its looked-at steps ends it."""
    rows = {name: jnp.zeros((6, 3)) for name in ("reward", "fall")}
    rows |= {name: jnp.zeros((6, 3)).at[1::2].set(2.0) for name in ("reward/mask", "shuffled")}  # of three ticks
    rows["done"] = jnp.zeros((6, 3), bool).at[-1].set(ends)
    found = _metrics(rows, env)
    np.testing.assert_array_equal([found["mask_iou"], found["mask_iou_shuffled"]], np.ones((2, 3)))


@pytest.mark.slow
def test_a_clip_longer_than_an_episode_is_measured_over_the_episode(tiny_env, moving_reference):
    """Over the whole clip the IoU could not be above one half."""
    robot = nil_jax.envs.make(tiny_env.spec.handle, tiny_env.config, episode_length=20)  # half of the clip
    env = ImitationEnv(robot, dataclasses.replace(moving_reference, loop=False), config=ImitationConfig(starts="first"))
    still = jax.device_get(jax.jit(lambda key: run_episodes(env, controls(2), 2, key))(jax.random.key(5)))
    metrics = still["zero action"].metrics  # follows the clip's poses
    assert metrics["length"].tolist() == pytest.approx([0.4, 0.4]) and not metrics["fall"].any()
    assert metrics["mask_iou"].min() > 0.5
    speed = metrics["distance"] / metrics["length"]
    steady = 400 * np.exp(-np.square(speed - robot.spec.target_velocity))  # were the speed always the same
    np.testing.assert_allclose(metrics["locomotion"], steady, rtol=0.25)


def test_measures_of_a_robot_equal_numpy_over_one_episode(tiny_env, moving_reference):
    robot = nil_jax.envs.make(tiny_env.spec.handle, tiny_env.config, episode_length=20)  # too short to fall
    env = ImitationEnv(robot, moving_reference, config=ImitationConfig(starts="first"))
    policies = controls(2) | {"standing still": zero_action(2)}
    run = jax.jit(lambda key: run_episodes(env, policies, 2, key, {"standing still"}))
    found = jax.device_get(run(jax.random.key(5)))
    away = {name: abs(episode.qpos[1:-1, 7:] - robot.default_qpos[7:]).max() for name, episode in found.items()}
    assert away["standing still"] < 0.1 < away["zero action"]  # which follows the clip
    for name in ("zero action", "random policy"):
        episode = found[name]
        assert bool(episode.alive[:-1].all()) and not episode.alive[-1]  # the last state is that of the next episode
        body = Body(tiny_env)
        points, wanted = (body.size * body.keypoints(q) for q in (episode.qpos[1:-1], moving_reference.motion))
        wanted = wanted[np.arange(1, len(points) + 1) % 21]
        mirrored = points[:, body.keypoint_twins] * [1, -1, 1]
        errors = [np.sqrt(np.square(image - wanted).sum(-1).mean()) for image in (points, mirrored)]
        np.testing.assert_allclose(episode.metrics["pose_error"][0], min(errors), rtol=1e-3)
        travelled = episode.qpos[-2, 0] - episode.qpos[0, 0]
        np.testing.assert_allclose(episode.metrics["distance"][0], travelled, atol=0.04)
        assert 0 < episode.metrics["locomotion"][0] < 400 and 0 < episode.metrics["torque"][0] < 1
    assert found["random policy"].metrics["jerk"][0] > 2 * found["zero action"].metrics["jerk"][0]
