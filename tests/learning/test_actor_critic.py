from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from nil_jax.learning import ACTOR_METRICS, LearnerConfig, make_actor_critic, make_policy, networks
from nil_jax.types import Transition

OBS, ACT, B = 5, 3, 16
SMALL = LearnerConfig(
    actor_hidden=(16, 16), critic_hidden=(24, 24), batch_size=B, policy_delay=1, target_entropy_scale=0.5
)
# Sums of float32 in another order than the oracle's.
FLOAT32_SUM = 1e-5


def _batch(seed: int = 0) -> Transition:
    keys = jax.random.split(jax.random.key(seed), 5)
    return Transition(
        observation=jax.random.normal(keys[0], (B, OBS)),
        action=jax.random.uniform(keys[1], (B, ACT), minval=-1.0),
        reward=jax.random.normal(keys[2], (B,)),
        discount=jax.random.bernoulli(keys[3], 0.8, (B,)).astype(jnp.float32),
        next_observation=jax.random.normal(keys[4], (B, OBS)),
        extras={"truncated": jnp.zeros(B)},
    )


def _assert_trees_equal(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def update_traces():
    """One entry for each time that the learner's update is traced."""
    return []


@pytest.fixture(scope="module")
def learner(update_traces):
    """The functions compiled, as a training step would have them."""
    plain = make_actor_critic(OBS, ACT, SMALL)

    def update(state, batch, key):
        update_traces.append("update")
        return plain.update(state, batch, key)

    return plain._replace(
        init=jax.jit(plain.init),
        act=jax.jit(plain.act, static_argnames="deterministic"),
        observe=jax.jit(plain.observe),
        update=jax.jit(update),
    )


@pytest.fixture(scope="module")
def state(learner):
    return learner.init(jax.random.key(0))


def test_learning_rates_fall_linearly_over_the_last_share_of_a_run(state):
    """Steps of Adam from one state that is said to be at different places of a run of 100 updates."""
    falling = make_actor_critic(OBS, ACT, replace(SMALL, lr_decay=0.4), num_updates=100)

    def step(steps):
        after, _ = jax.jit(falling.update)(replace(state, steps=jnp.int32(steps)), _batch(), jax.random.key(1))
        moved = jax.tree.map(lambda a, b: a - b, (after.params, after.log_alpha), (state.params, state.log_alpha))
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(moved)])

    whole = step(0)
    assert np.abs(whole).max() > 1e-4
    for steps, share in ((60, 1.0), (70, 0.75), (95, 0.125), (100, 0.0), (120, 0.0)):
        np.testing.assert_allclose(step(steps), share * whole, atol=1e-6, err_msg=str(steps))


def test_update_is_pure(learner, state):
    before = [np.array(leaf) for leaf in jax.tree.leaves(state)]
    first, first_metrics = learner.update(state, _batch(), jax.random.key(1))
    again, again_metrics = learner.update(state, _batch(), jax.random.key(1))
    _assert_trees_equal((first, first_metrics), (again, again_metrics))
    _assert_trees_equal(before, [np.array(leaf) for leaf in jax.tree.leaves(state)])
    assert int(first.steps) == 1


def _zeros(tree):
    return jax.tree.map(jnp.zeros_like, tree)


def test_target_network_follows_by_tau(learner, state):
    state = replace(state, target_params=_zeros(state.target_params))  # far away: one step moves a critic very little
    after, _ = learner.update(state, _batch(), jax.random.key(1))
    close = partial(np.testing.assert_allclose, rtol=FLOAT32_SUM)
    jax.tree.map(lambda a, b: close(a, SMALL.tau * np.asarray(b)), after.target_params, after.params["critic"])


def test_what_acts_without_exploring_is_the_mean_of_the_actors_and_later_a_slow_average(learner, state):
    actors, averages = [], []
    for i in range(3):
        state, _ = learner.update(state, _batch(i), jax.random.key(i))
        actors.append(jax.tree.map(np.asarray, state.params["actor"]))
        averages.append(jax.tree.map(np.asarray, state.average_actor))
    mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *actors)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=FLOAT32_SUM), averages[-1], mean)
    late = replace(state, steps=jnp.int32(10**6), average_actor=_zeros(state.average_actor))  # far from the actor
    after, _ = learner.update(late, _batch(), jax.random.key(7))
    close = partial(np.testing.assert_allclose, rtol=FLOAT32_SUM)
    expected = jax.tree.map(lambda new: SMALL.actor_average * np.asarray(new), after.params["actor"])
    jax.tree.map(close, after.average_actor, expected)
    noticed = replace(after, params=after.params | {"actor": _zeros(after.params["actor"])})
    observation = jnp.ones(OBS)
    actions = [learner.act(s, observation, jax.random.key(0), deterministic=True)[0] for s in (after, noticed)]
    np.testing.assert_array_equal(*actions)


def test_a_delayed_policy_learns_every_third_update_and_the_critics_in_each(learner, state):
    delayed = jax.jit(make_actor_critic(OBS, ACT, replace(SMALL, policy_delay=3)).update)
    for steps in (0, 1, 2, 3):
        before = replace(state, steps=jnp.int32(steps))
        plain, plain_metrics = learner.update(before, _batch(), jax.random.key(1))
        after, metrics = delayed(before, _batch(), jax.random.key(1))
        acting = [(s.params["actor"], s.optimizer_state["actor"], s.log_alpha) for s in (plain, before)]
        expected = acting[0 if steps in (0, 3) else 1]
        found = after.params["actor"], after.optimizer_state["actor"], after.log_alpha
        close = partial(np.testing.assert_allclose, atol=FLOAT32_SUM)
        jax.tree.map(close, found, expected)
        jax.tree.map(close, after.params["critic"], plain.params["critic"])
        for name, value in metrics.items():
            silent = name in ACTOR_METRICS and steps in (1, 2)
            np.testing.assert_allclose(value, np.nan if silent else plain_metrics[name], rtol=1e-4, err_msg=name)


def test_update_compiles_once(learner, state, update_traces):
    for i in range(3):
        state = learner.observe(state, _batch(i).observation)
        state, _ = learner.update(state, _batch(i), jax.random.key(i))
    assert update_traces == ["update"]


def test_critic_loss_equals_numpy(learner, state):
    """Of a state whose critics, target, actor, its average and statistics are all different."""
    config, batch, seen = SMALL, _batch(), 1.0 + 2.0 * _batch(5).observation
    state = learner.observe(state, seen)
    target_params = jax.tree.map(lambda leaf: 1.5 * leaf, state.target_params)
    state = replace(state, target_params=target_params, average_actor=_zeros(state.average_actor))
    key_critic, _ = jax.random.split(jax.random.key(1))
    critic = jax.jit(networks.TwinCritic(config.critic_hidden, 1).apply)
    observation, next_observation = (
        (np.asarray(raw) - np.mean(seen, axis=0)) / np.std(seen, axis=0)
        for raw in (batch.observation, batch.next_observation)
    )
    values = np.asarray(critic(state.params["critic"], observation, batch.action))[..., 0]
    next_action, extras = learner.act(state, batch.next_observation, key_critic)
    next_values = np.asarray(critic(state.target_params, next_observation, next_action))[..., 0]
    soft = next_values.min(axis=0) - config.init_temperature * np.asarray(extras["log_prob"])
    target = np.asarray(batch.reward) + config.gamma * np.asarray(batch.discount) * soft
    expected = 0.5 * ((values - target) ** 2).mean(axis=1).sum()
    _, metrics = learner.update(state, batch, jax.random.key(1))
    np.testing.assert_allclose(metrics["critic_loss"], expected, rtol=1e-4)  # two networks deep in float32


def test_the_temperature_seeks_the_entropy_of_the_settings(learner, state):
    _, metrics = learner.update(state, _batch(), jax.random.key(1))
    above = float(metrics["entropy"]) + SMALL.target_entropy_scale * ACT
    np.testing.assert_allclose(metrics["alpha_loss"], SMALL.init_temperature * above, rtol=1e-4)


def test_log_prob_equals_the_density_of_a_squashed_normal(learner, state):
    observation = jax.random.normal(jax.random.key(2), (B, OBS))
    action, extras = learner.act(state, observation, jax.random.key(3))
    logits = np.asarray(networks.Actor(ACT, SMALL.actor_hidden).apply(state.params["actor"], observation), np.float64)
    mean, std = logits[:, :ACT], np.log1p(np.exp(logits[:, ACT:])) + 1e-3
    action = np.asarray(action, np.float64)
    density = scipy.stats.norm.logpdf(np.arctanh(action), mean, std) - np.log(1 - action**2)
    # arctanh amplifies the rounding of a float32 action by 1 / (1 - a^2).
    np.testing.assert_allclose(extras["log_prob"], density.sum(axis=-1), rtol=1e-3, atol=1e-3)
    drawn = np.tanh(mean + std * np.random.default_rng(0).standard_normal((100_000, 1, 1)))
    np.testing.assert_allclose(extras["mean"], drawn.mean(axis=0), atol=0.01)  # an approximation, and a sample


def test_actions_stay_within_one(learner, state):
    wild = replace(state, params=jax.tree.map(lambda x: 30.0 * x, state.params))
    action, extras = learner.act(wild, 100.0 * jax.random.normal(jax.random.key(4), (256, OBS)), jax.random.key(5))
    assert float(jnp.abs(action).max()) <= 1.0
    assert np.isfinite(extras["log_prob"]).all()


def test_deterministic_action_is_the_mean_whatever_the_key(learner, state):
    observation = jax.random.normal(jax.random.key(2), (B, OBS))
    action, extras = learner.act(state, observation, jax.random.key(3), deterministic=True)
    other, _ = learner.act(state, observation, jax.random.key(4), deterministic=True)
    np.testing.assert_array_equal(action, extras["mean"])
    np.testing.assert_array_equal(action, other)


@pytest.mark.parametrize("deterministic", [False, True])
def test_policy_takes_one_observation_or_a_batch(learner, state, deterministic):
    policy = make_policy(learner, state, deterministic)
    single, extras = policy(jnp.ones(OBS), jax.random.key(0))
    batch, batch_extras = policy(jnp.ones((4, OBS)), jax.random.key(0))
    assert (single.shape, extras["log_prob"].shape) == ((ACT,), ())
    assert (batch.shape, batch_extras["log_prob"].shape) == ((4, ACT), (4,))


def test_policies_of_two_states_share_one_compiled_program(learner, state):
    traced, observation, key = [], jnp.ones(OBS), jax.random.key(0)

    @jax.jit
    def act(policy):
        traced.append(policy)
        return policy(observation, key)[0]

    states = state, learner.init(jax.random.key(9))
    actions = [act(make_policy(learner, each, deterministic=True)) for each in states]
    assert len(traced) == 1
    for each, action in zip(states, actions, strict=True):
        np.testing.assert_allclose(action, learner.act(each, observation, key, True)[0], rtol=1e-5)
    assert np.abs(actions[0] - actions[1]).max() > 1e-3


def test_running_statistics_equal_numpy_over_everything_seen(learner, state):
    chunks = [3.0 + 2.0 * np.random.default_rng(i).normal(size=(7, OBS)).astype(np.float32) for i in range(4)]
    for chunk in chunks[:2]:
        state = learner.observe(state, jnp.asarray(chunk))
    state = learner.observe(state, jnp.asarray(np.stack(chunks[2:])))  # two leading axes count like one
    seen = np.concatenate(chunks)
    np.testing.assert_allclose(state.normalizer.mean, seen.mean(axis=0), rtol=FLOAT32_SUM)
    np.testing.assert_allclose(state.normalizer.std, seen.std(axis=0), rtol=1e-4)  # a difference of squares


def test_policy_sees_observations_relative_to_the_statistics(learner, state):
    observation = jax.random.normal(jax.random.key(2), (64, OBS))
    seen = learner.observe(state, observation)
    shifted = learner.observe(state, 5.0 + 10.0 * observation)
    key = jax.random.key(0)
    expected, _ = learner.act(seen, observation, key, deterministic=True)
    actual, _ = learner.act(shifted, 5.0 + 10.0 * observation, key, deterministic=True)
    np.testing.assert_allclose(actual, expected, atol=FLOAT32_SUM)


def test_a_constant_sensor_stays_harmless(learner, state):
    state = learner.observe(state, jnp.ones((64, OBS)))
    action, _ = learner.act(state, jnp.ones(OBS) + 1e3, jax.random.key(0))
    assert np.isfinite(action).all()


def test_without_normalisation_observations_leave_the_state_alone(state):
    learner = make_actor_critic(OBS, ACT, replace(SMALL, normalize_observations=False))
    assert learner.observe(state, jnp.ones((4, OBS))) is state


def test_twins_start_apart_and_the_target_starts_as_a_copy(state):
    kernel = np.asarray(state.params["critic"]["params"]["Torso_0"]["Dense_0"]["kernel"])
    assert kernel.shape == (2, OBS + ACT, 24)
    assert (kernel[0] != kernel[1]).all()
    _assert_trees_equal(state.params["critic"], state.target_params)


def test_bfloat16_distributional_update_in_place_stays_finite_with_float32_parameters():
    learner = make_actor_critic(OBS, ACT, replace(SMALL, critic="distributional", network_dtype="bfloat16"))
    before = jax.jit(learner.init)(jax.random.key(0))
    # A donated buffer that could not be reused would be a warning, and warnings are errors here.
    state, metrics = jax.jit(learner.update, donate_argnums=0)(before, _batch(), jax.random.key(1))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))
    assert all(np.isfinite(value) for value in metrics.values())
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}


def test_networks_hold_under_strict_promotion(strict_promotion):
    batch = jax.eval_shape(_batch)
    critic, actor = networks.TwinCritic((8, 8), 4), networks.Actor(ACT, (8,))
    values, _ = jax.eval_shape(critic.init_with_output, jax.random.key(0), batch.observation, batch.action)
    logits, _ = jax.eval_shape(actor.init_with_output, jax.random.key(0), batch.observation)
    assert (values.shape, logits.shape) == ((2, B, 4), (B, 2 * ACT))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("gamma", 1.0, r"gamma: expected a number in \[0, 1\), got 1.0"),
        ("tau", 0.0, r"tau: expected a number in \(0, 1\], got 0.0"),
        ("actor_hidden", (), r"actor_hidden: expected 1 to 8 widths from 1 to 4096, got \(\)"),
        ("critic_hidden", (64, 0), r"critic_hidden: expected 1 to 8 widths from 1 to 4096, got \(64, 0\)"),
        ("critic_hidden", (10**9,), "critic_hidden: expected .* 4096"),
        ("critic_lr", float("nan"), "critic_lr: expected a positive number, got nan"),
        ("alpha_lr", -1.0, "alpha_lr: expected a number >= 0, got -1.0"),
        ("batch_size", 0, "batch_size: expected an integer from 1 to 1048576, got 0"),
        ("pessimism", 2.0, r"pessimism: expected a number in \[0, 1\], got 2.0"),
        ("init_temperature", 0.0, "init_temperature: expected a positive number, got 0.0"),
        ("learning_starts", -1, "learning_starts: expected an integer >= 0, got -1"),
        ("policy_delay", 0, "policy_delay: expected an integer from 1 to 10000, got 0"),
    ],
)
def test_config_out_of_range_is_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        LearnerConfig(**{field: value})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("critic", "c51", "critic: expected 'twin' or 'distributional', got 'c51'"),
        ("network_dtype", "float16", "network_dtype: expected 'float32' or 'bfloat16', got 'float16'"),
    ],
)
def test_unknown_choice_is_refused_by_name(field, value, message):
    # Where signatures are checked at run time too, that check speaks first, in its own words.
    with pytest.raises((ValueError, TypeError), match=f"{message}|parameter '{field}'"):
        LearnerConfig(**{field: value})


def test_sizes_out_of_range_are_refused():
    with pytest.raises(ValueError, match="action_size: expected an integer >= 1, got 0"):
        make_actor_critic(OBS, 0, SMALL)
