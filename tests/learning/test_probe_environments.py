"""Probe environments: each isolates one thing that the learner must get right, with a closed-form answer.

All share shapes, and `lax.switch` picks one, so that the whole loop (act, step, add, sample, update) compiles once per
configuration. An observation is (sign, stage) with sign -1 or 1; N environments, one action.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nil_jax.learning import LearnerConfig, make_actor_critic, make_replay, networks
from nil_jax.types import Transition

N, GAMMA = 8, 0.5
# What small networks reach in a few hundred updates; the answers that a bug would give are at least 0.4 away.
LEARNED = 0.1


def _transition(observation, action, reward, terminated, truncated, next_observation) -> Transition:
    return Transition(observation, action, reward, 1.0 - terminated, next_observation, {"truncated": truncated})


def _constant_reward(observation, action):
    ones = jnp.ones(N)
    return _transition(observation, action, ones, ones, 0 * ones, observation)


def _reward_is_the_sign(observation, action):
    ones = jnp.ones(N)
    return _transition(observation, action, observation[:, 0], ones, 0 * ones, observation)


def _reward_comes_one_step_later(observation, action):
    stage = observation[:, 1]
    return _transition(observation, action, stage, stage, 0 * stage, observation.at[:, 1].set(1.0))


def _action_should_match_the_sign(observation, action):
    ones = jnp.ones(N)
    return _transition(observation, action, observation[:, 0] * action[:, 0], ones, 0 * ones, observation)


def _action_pays_one_step_later(observation, action):
    sign, stage = observation[:, 0], observation[:, 1]
    successor = jnp.stack([sign * action[:, 0], jnp.ones(N)], axis=-1)
    return _transition(observation, action, stage * sign, stage, 0 * stage, successor)


def _positive_sign_is_truncated_negative_terminated(observation, action):
    truncated = (observation[:, 0] > 0).astype(jnp.float32)
    return _transition(observation, action, jnp.ones(N), 1.0 - truncated, truncated, observation)


PROBES = (
    _constant_reward,
    _reward_is_the_sign,
    _reward_comes_one_step_later,
    _action_should_match_the_sign,
    _action_pays_one_step_later,
    _positive_sign_is_truncated_negative_terminated,
)


@cache
def _learner_and_run(critic: str, n_step: int):
    config = LearnerConfig(
        actor_hidden=(32, 32),
        critic_hidden=(32, 32),
        critic=critic,
        num_quantiles=8,
        n_step=n_step,
        gamma=GAMMA,
        tau=0.1,
        actor_lr=3e-3,
        critic_lr=3e-3,
        alpha_lr=0.0,
        init_temperature=1e-4,  # low enough for the entropy to leave the closed-form values alone
        batch_size=64,
        replay_size=8_000,
        learning_starts=10 * N,
    )
    learner, replay = make_actor_critic(2, 1, config), make_replay(config, N)

    def start(key):
        sign = jnp.where(jax.random.bernoulli(key, 0.5, (N,)), 1.0, -1.0)
        return jnp.stack([sign, jnp.zeros(N)], axis=-1)

    def iteration(carry, key, probe):
        state, replay_state, observation = carry
        key_act, key_start, key_sample, key_update = jax.random.split(key, 4)
        action, _ = learner.act(state, observation, key_act)
        transition = jax.lax.switch(probe, PROBES, observation, action)
        replay_state = replay.add(replay_state, transition)
        state = learner.observe(state, observation)
        updated, _ = learner.update(state, replay.sample(replay_state, key_sample, config.batch_size), key_update)
        state = jax.tree.map(lambda new, old: jnp.where(replay.can_sample(replay_state), new, old), updated, state)
        ended = (transition.discount == 0.0) | (transition.extras["truncated"] > 0.0)
        observation = jnp.where(ended[:, None], start(key_start), transition.next_observation)
        return (state, replay_state, observation), None

    @jax.jit
    def run(probe, key):
        key_init, key_start, key_run = jax.random.split(key, 3)
        example = Transition(
            jnp.zeros(2), jnp.zeros(1), jnp.zeros(()), jnp.zeros(()), jnp.zeros(2), {"truncated": jnp.zeros(())}
        )
        carry = (learner.init(key_init), replay.init(example), start(key_start))
        keys = jax.random.split(key_run, 800)
        return jax.lax.scan(lambda c, k: iteration(c, k, probe), carry, keys)[0][0]

    return learner, run, networks.TwinCritic(config.critic_hidden, config.num_values)


def _learn(probe, critic: str, n_step: int = 1):
    """(value(sign, stage), action(sign, stage)) after learning; values are those of the deterministic action."""
    learner, run, critics = _learner_and_run(critic, n_step)
    state = run(PROBES.index(probe), jax.random.key(0))

    def action(sign: float, stage: float = 0.0) -> float:
        return float(learner.act(state, jnp.array([sign, stage]), jax.random.key(0), deterministic=True)[0][0])

    def value(sign: float, stage: float = 0.0) -> float:
        observation = (jnp.array([sign, stage]) - state.normalizer.mean) / state.normalizer.std
        return float(critics.apply(state.params["critic"], observation, jnp.array([action(sign, stage)])).mean())

    return value, action


BOTH_CRITICS = pytest.mark.parametrize("critic", ["twin", "distributional"])
CRITICS_AND_STEPS = pytest.mark.parametrize(("critic", "n_step"), [("twin", 1), ("twin", 2), ("distributional", 1)])


@BOTH_CRITICS
def test_constant_reward_is_the_value(critic):
    value, _ = _learn(_constant_reward, critic)
    np.testing.assert_allclose(value(1.0), 1.0, atol=LEARNED)


@BOTH_CRITICS
def test_value_depends_on_the_observation(critic):
    value, _ = _learn(_reward_is_the_sign, critic)
    np.testing.assert_allclose([value(1.0), value(-1.0)], [1.0, -1.0], atol=LEARNED)


@CRITICS_AND_STEPS
def test_credit_goes_back_one_step_discounted(critic, n_step):
    value, _ = _learn(_reward_comes_one_step_later, critic, n_step)
    np.testing.assert_allclose([value(1.0, 0.0), value(1.0, 1.0)], [GAMMA, 1.0], atol=LEARNED)


@BOTH_CRITICS
def test_policy_takes_the_action_that_pays(critic):
    value, action = _learn(_action_should_match_the_sign, critic)
    np.testing.assert_allclose([action(1.0), action(-1.0)], [1.0, -1.0], atol=LEARNED)
    np.testing.assert_allclose([value(1.0), value(-1.0)], [1.0, 1.0], atol=LEARNED)


@BOTH_CRITICS
def test_policy_takes_the_action_that_pays_one_step_later(critic):
    value, action = _learn(_action_pays_one_step_later, critic)
    np.testing.assert_allclose([action(1.0), action(-1.0)], [1.0, -1.0], atol=LEARNED)
    np.testing.assert_allclose([value(1.0), value(-1.0)], [GAMMA, GAMMA], atol=LEARNED)


@CRITICS_AND_STEPS
def test_truncated_episode_still_bootstraps_and_a_terminated_one_does_not(critic, n_step):
    value, _ = _learn(_positive_sign_is_truncated_negative_terminated, critic, n_step)
    np.testing.assert_allclose([value(1.0), value(-1.0)], [1.0 / (1.0 - GAMMA), 1.0], atol=LEARNED)
