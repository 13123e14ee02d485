"""Our environments in the hands of Brax's trainers and of Gymnasium."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nil_jax import ImitationEnv
from nil_jax.adapters import as_brax, as_gymnasium
from nil_jax.rewards import RewardConfig

# Brax and JAXopt warn that they are no longer developed.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def imitation(tiny_env, tiny_reference):
    return ImitationEnv(tiny_env, tiny_reference, RewardConfig(video_weight=0.0))


def replicated(tree, devices):
    """What `jax.device_put_replicated` was, for one device: JAX 0.10 has it no longer, and Brax calls it."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], tree)


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


@pytest.mark.parametrize("trainer", ["ppo", "sac"])
def test_brax_trains_on_ours(imitation, trainer, monkeypatch):
    monkeypatch.setattr(jax, "device_put_replicated", replicated, raising=False)
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
    gymnasium = pytest.importorskip("gymnasium")
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
            assert (infos["final_obs"][~over] == obs[~over]).all() and (infos["final_obs"][over] != obs[over]).any()
        ended += int(over.sum())
    assert ended >= 3
