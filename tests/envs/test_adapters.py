"""Environments of other libraries, with the real packages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nil_jax
from nil_jax.envs import AutoResetWrapper, BraxEnv, VmapWrapper

# Brax and JAXopt warn that they are no longer developed, when they are imported and when they make an environment.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def pendulum():
    import brax.envs

    return brax.envs.get_environment("inverted_pendulum", backend="generalized")


def test_an_environment_of_brax_goes_as_it_does_there_and_is_cut_at_its_length(pendulum):
    env, action = BraxEnv(pendulum, episode_length=5), jnp.array([0.02])
    ours, theirs = jax.jit(env.reset)(jax.random.key(3)), jax.jit(pendulum.reset)(jax.random.PRNGKey(3))
    step, their_step = jax.jit(env.step), jax.jit(pendulum.step)
    for count in range(1, 6):
        ours, theirs = step(ours, action), their_step(theirs, action)
        np.testing.assert_allclose(ours.obs, theirs.obs, atol=1e-6)
        assert float(ours.reward) == float(theirs.reward) and bool(ours.terminated) == bool(theirs.done)
        assert bool(ours.truncated) == (count == 5)
    batch = AutoResetWrapper(VmapWrapper(env))
    states, step = jax.jit(batch.reset)(jax.random.split(jax.random.key(0), 3)), jax.jit(batch.step)
    for _ in range(40):
        states = step(states, jnp.ones((3, 1)))
    assert np.isfinite(states.obs).all()


@pytest.mark.slow
def test_it_is_trained_on_and_evaluated(pendulum):
    env = BraxEnv(pendulum, episode_length=50)
    sizes = {"num_timesteps": 512, "num_envs": 4, "learning_starts": 64, "batch_size": 16, "grad_updates_per_step": 1}
    result = nil_jax.train(env, **sizes, num_evals=1, num_eval_envs=2, progress=False)
    row = nil_jax.evaluate(env, result.policy, num_envs=2)["policy"]
    assert 0 < row["return"] <= 50 and row["length"] <= 50 * env.dt and "distance" not in row


@pytest.mark.slow
def test_a_real_environment_of_playground_is_trained_on():
    # Of the DeepMind control suite, whose models ship with Playground: no network.
    from mujoco_playground import registry

    env = BraxEnv(registry.load("CartpoleBalance", config_overrides={"impl": "jax"}), episode_length=20)
    assert env.observation_size == 5 and env.action_size == 1 and env.dt == 0.01
    sizes = {"num_timesteps": 128, "num_envs": 4, "learning_starts": 32, "batch_size": 16, "grad_updates_per_step": 1}
    small = {"num_evals": 1, "num_eval_envs": 2, "actor_hidden": (8,), "critic_hidden": (8,)}
    row = nil_jax.train(env, **sizes, **small, progress=False).evaluation["policy"]
    assert 15 < row["return"] <= 20 and row["length"] == pytest.approx(20 * env.dt)  # upright for so short a time


class Playground:
    """What MuJoCo Playground's environments look like: observations in parts, sizes as tuples."""

    observation_size, action_size, dt = {"state": (3,), "privileged_state": (5,)}, 2, 0.02

    def reset(self, key):
        from brax.envs import State

        return State(jax.random.uniform(key), {"state": jnp.ones(3), "privileged_state": jnp.ones(5)}, *jnp.zeros(2))


def test_of_observations_in_parts_the_state_is_seen():
    with pytest.raises(ValueError, match="episode_length: expected an integer >= 1, got 0"):
        BraxEnv(Playground(), 0)
    env = BraxEnv(Playground())
    assert env.observation_size == 3 and env.reset(jax.random.key(0)).obs.shape == (3,)


def test_what_is_not_finite_ends_the_episode():
    class Breaking(Playground):
        def reset(self, key):
            state = super().reset(key)
            return state.replace(obs=state.obs | {"state": jnp.array([1.0, jnp.nan, 2.0])}, metrics={"m": jnp.inf})

    state = BraxEnv(Breaking()).reset(jax.random.key(0))
    assert bool(state.terminated) and float(state.metrics["m"]) == 0.0 and float(state.metrics["fall"]) == 1.0
    np.testing.assert_array_equal(state.obs, np.zeros(3))
