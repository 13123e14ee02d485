"""Our environments in the hands of Brax's trainers and of Gymnasium."""

from functools import partial

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from nil_jax import ImitationEnv
from nil_jax.adapters import as_brax, as_gymnasium
from nil_jax.envs import Env, State
from nil_jax.rewards import RewardConfig

# Brax and JAXopt warn that they are no longer developed.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def imitation(tiny_env, tiny_reference):
    return ImitationEnv(tiny_env, tiny_reference, RewardConfig(video_weight=0.0))


def test_for_brax_episodes_restart_and_robots_are_looked_at_in_time(imitation):
    env = as_brax(imitation)
    state = jax.jit(env.reset)(jax.random.split(jax.random.PRNGKey(0), 3))
    step, looked, done = jax.jit(env.step), [], []
    for _ in range(45):
        state = step(state, jnp.ones((3, 2)))
        looked.append(bool((state.metrics["reward/mask"] > 0).any()))
        done.append(np.asarray(state.done))
        assert (np.asarray(state.info["steps"]) >= 1).all()
    assert looked[1::2].count(True) > 15 and not any(looked[::2])  # 50 Hz, 25 looks a second
    ended = np.argmax(np.stack(done)[:, 0])
    assert done[ended][0] and state.info["steps"][0] < 45
    assert float(state.info["episode_metrics"]["sum_reward"][0]) > 0


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["ppo", "sac"])
def test_brax_trains_on_ours(imitation, trainer):
    jax.config.update("jax_debug_key_reuse", False)  # Brax uses keys twice
    try:
        from brax.training.agents.ppo import networks as ppo_networks
        from brax.training.agents.ppo import train as ppo
        from brax.training.agents.sac import networks as sac_networks
        from brax.training.agents.sac import train as sac

        shared = {"num_envs": 4, "num_eval_envs": 4, "num_evals": 2, "episode_length": 10}
        shared["wrap_env_fn"] = lambda env, **_: env
        if trainer == "ppo":
            factory = partial(
                ppo_networks.make_ppo_networks, policy_hidden_layer_sizes=(8,), value_hidden_layer_sizes=(8,)
            )
            settings = {"unroll_length": 4, "batch_size": 4, "num_minibatches": 1, "num_updates_per_batch": 1}
            make_policy, params, metrics = ppo.train(
                as_brax(imitation), num_timesteps=64, network_factory=factory, **settings, **shared
            )
        else:
            factory = partial(sac_networks.make_sac_networks, hidden_layer_sizes=(8,))
            make_policy, params, metrics = sac.train(
                as_brax(imitation),
                num_timesteps=64,
                min_replay_size=16,
                max_replay_size=64,
                batch_size=8,
                network_factory=factory,
                **shared,
            )
    finally:
        jax.config.update("jax_debug_key_reuse", True)
    assert metrics["eval/episode_reward"] > 0
    action, _ = make_policy(params)(jnp.zeros((1, imitation.observation_size)), jax.random.PRNGKey(0))
    assert action.shape == (1, 2)


def test_gymnasium_sees_arrays_and_true_last_observations(imitation):
    env = as_gymnasium(imitation, 3, seed=1)
    assert isinstance(env, gymnasium.vector.VectorEnv)
    with pytest.raises(ValueError, match="step: expected a reset"):
        env.step(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="num_envs: expected an integer >= 1, got 0"):
        as_gymnasium(imitation, 0)
    first, _ = env.reset(seed=5)
    with pytest.raises(ValueError, match=r"actions: expected \(3, 2\), got \(2,\)"):
        env.step(np.zeros(2))
    again, _ = env.reset(seed=5)
    other, _ = env.reset()
    np.testing.assert_array_equal(first, again)
    assert env.observation_space.contains(first) and not np.array_equal(first, other)
    ended = 0
    for _ in range(45):
        obs, reward, terminated, truncated, infos = env.step(env.action_space.sample() * 0 + 1)
        over = terminated | truncated
        assert env.observation_space.contains(obs) and reward.shape == over.shape == (3,)
        assert ("final_obs" in infos) == over.any()
        if over.any():
            np.testing.assert_array_equal(infos["_final_obs"], over)
            assert all((last is not None) == end for last, end in zip(infos["final_obs"], over, strict=True))
            assert all((infos["final_obs"][i] != obs[i]).any() for i in np.flatnonzero(over))
        ended += int(over.sum())
    assert ended >= 3


class Climb(Env):
    """A point that actions push up from a random height: over the top the episode ends, or after 8 steps."""

    observation_size, action_size, dt, episode_length = 1, 2, 0.1, 8

    def reset(self, key):
        height, zero = jax.random.uniform(key, (1,)), jnp.float32(0)
        return State(height, height, zero, jnp.bool_(False), jnp.bool_(False), {"pace": zero}, {"step": jnp.int32(0)})

    def step(self, state, action):
        pace, steps = 0.2 * action.mean(), state.info["step"] + 1
        height = state.data + pace
        flags = height[0] > 2.0, steps >= self.episode_length
        return State(height, height, height[0], *flags, {"pace": pace}, {"step": steps})


def test_for_brax_a_time_limit_is_a_truncation_only_where_nothing_else_ended_the_episode():
    class Both(Climb):
        episode_length = 1

        def step(self, state, action):
            return super().step(state, action).replace(terminated=action[0] > 0)

    env = as_brax(Both())
    state = env.step(env.reset(jax.random.split(jax.random.PRNGKey(0), 2)), jnp.array([[1.0, 1.0], [-1.0, -1.0]]))
    np.testing.assert_array_equal([state.done, state.info["truncation"]], [[1, 1], [0, 1]])


def test_gymnasiums_own_checker_finds_nothing(recwarn):
    check_env(as_gymnasium(Climb()))
    # An observation has no bounds, as in Gymnasium's robots, and nothing is registered with Gymnasium.
    known = ("maximum value is infinity", "minimum value is -infinity", "not having a spec")
    assert [str(w.message) for w in recwarn if not any(part in str(w.message) for part in known)] == []


def of_form(value):
    """Names, shapes and types of what a vector environment tells."""
    if isinstance(value, dict):
        return {name: of_form(part) for name, part in value.items()}
    return value.shape, value.dtype


def test_many_robots_act_as_gymnasiums_own_vector_of_single_ones():
    ours = as_gymnasium(Climb(), 3)
    theirs = gymnasium.vector.SyncVectorEnv([lambda: as_gymnasium(Climb())] * 3, autoreset_mode="SameStep")
    assert ours.metadata["autoreset_mode"] == theirs.metadata["autoreset_mode"]
    for name in ("observation_space", "action_space", "single_observation_space", "single_action_space"):
        assert getattr(ours, name) == getattr(theirs, name)
    np.testing.assert_array_equal(ours.reset(seed=7)[0], theirs.reset(seed=7)[0])
    first, kinds, actions = np.ones(3, bool), set(), np.full((3, 2), [[1.0], [1.0], [0.1]])
    for _ in range(8):  # behind its first end a robot's start is drawn: values are compared until then
        found, expected = ours.step(actions), theirs.step(actions)
        assert [(part.shape, part.dtype) for part in found[:4]] == [(part.shape, part.dtype) for part in expected[:4]]
        for i in np.flatnonzero(first):
            over = expected[2][i] | expected[3][i]
            assert [part[i] for part in found[1:4]] == [part[i] for part in expected[1:4]]
            seen, wanted = ((o[4]["final_obs"] if over else o[0])[i] for o in (found, expected))
            np.testing.assert_array_equal(seen, wanted)
            if over:
                kinds.add("terminated" if expected[2][i] else "truncated")
        over, other = (outputs[2] | outputs[3] for outputs in (found, expected))
        if first.all():
            assert of_form(found[4]) == of_form(expected[4]) and (over == other).all()
        first &= ~over
    assert kinds == {"terminated", "truncated"} and not first.any()
