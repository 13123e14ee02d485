import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nil_jax.learning import LearnerConfig, make_replay, n_step_transition
from nil_jax.types import Transition

# Sums of at most four float32 products.
FLOAT32_SUM = 1e-6


def _history(num_envs: int, length: int, seed: int = 0) -> Transition:
    """Random experience [N, length]; observations name their own place: (environment, time), successors time + 0.5."""
    rng = np.random.default_rng(seed)
    where = np.stack(np.meshgrid(np.arange(num_envs), np.arange(length), indexing="ij"), axis=-1).astype(np.float32)
    terminated = rng.random((num_envs, length)) < 0.15
    truncated = (rng.random((num_envs, length)) < 0.15) & ~terminated
    return Transition(
        observation=where,
        action=rng.uniform(-1, 1, (num_envs, length, 1)).astype(np.float32),
        reward=rng.normal(size=(num_envs, length)).astype(np.float32),
        discount=1.0 - terminated.astype(np.float32),
        next_observation=where + np.array([0.0, 0.5], np.float32),
        extras={"truncated": truncated.astype(np.float32), "log_prob": np.zeros((num_envs, length), np.float32)},
    )


def _n_step_by_loop(history: Transition, env: int, start: int, n: int, gamma: float):
    reward, time = 0.0, start
    for i in range(n):
        time = start + i
        reward += gamma**i * history.reward[env, time]
        if history.discount[env, time] == 0 or history.extras["truncated"][env, time] > 0:
            break
    return reward, history.discount[env, time] * gamma ** (time - start), history.next_observation[env, time]


def _at(history: Transition, *index) -> Transition:
    return jax.tree.map(lambda x: jnp.asarray(x[index]), history)


def _config(**changes) -> LearnerConfig:
    return LearnerConfig(**{"replay_size": 60, "learning_starts": 10, "batch_size": 64, "gamma": 0.9, **changes})


@pytest.mark.parametrize("n_step", [1, 2, 4])
@pytest.mark.parametrize("steps_per_add", [1, 4])
def test_samples_equal_a_loop_over_the_true_history(n_step, steps_per_add):
    num_envs, length = 3, 52  # the buffer holds 20 steps of each, so it wraps more than twice
    history = _history(num_envs, length)
    replay = make_replay(_config(n_step=n_step), num_envs)
    state = replay.init(_at(history, 0, 0))
    add, sample = jax.jit(replay.add, donate_argnums=0), jax.jit(replay.sample, static_argnums=2)
    for t in range(0, length, steps_per_add):
        index = (slice(None), t) if steps_per_add == 1 else (slice(None), slice(t, t + steps_per_add))
        state = add(state, _at(history, *index))
    batch = sample(state, jax.random.key(0), 256)
    starts = set()
    for b in range(256):
        env, start = (int(x) for x in batch.observation[b])
        starts.add(start)
        reward, discount, next_observation = _n_step_by_loop(history, env, start, n_step, 0.9)
        np.testing.assert_allclose(batch.reward[b], reward, rtol=FLOAT32_SUM, atol=FLOAT32_SUM)
        np.testing.assert_allclose(batch.discount[b], discount, rtol=FLOAT32_SUM)
        np.testing.assert_array_equal(batch.next_observation[b], next_observation)
        np.testing.assert_array_equal(batch.action[b], history.action[env, start])
    assert starts == set(range(length - 20, length - n_step + 1)), "every whole window of the newest 20 steps, no other"


def test_truncated_window_ends_and_still_bootstraps():
    window = Transition(
        observation=jnp.zeros((3, 3, 1)),
        action=jnp.zeros((3, 3, 1)),
        reward=jnp.array([[1.0, 10.0, 100.0]] * 3),
        discount=jnp.array([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 0.0, 1.0]]),
        next_observation=jnp.array([[[1.0], [2.0], [3.0]]] * 3),
        extras={"truncated": jnp.array([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])},
    )
    reduced = n_step_transition(window, 0.5)
    np.testing.assert_array_equal(reduced.reward, [1 + 5 + 25, 1 + 5, 1 + 5])
    np.testing.assert_array_equal(reduced.discount, [0.25, 0.5, 0.0])
    np.testing.assert_array_equal(reduced.next_observation[:, 0], [3.0, 2.0, 2.0])


def test_window_reduction_holds_under_strict_promotion(strict_promotion):
    window = _at(_history(4, 3), slice(None))
    assert n_step_transition(window, 0.9).reward.shape == (4,)


def test_can_sample_after_learning_starts_transitions():
    history = _history(3, 6)
    replay = make_replay(_config(learning_starts=10), 3)
    state, answers = replay.init(_at(history, 0, 0)), []
    for t in range(5):
        state = replay.add(state, _at(history, slice(None), t))
        answers.append(bool(replay.can_sample(state)))
    assert answers == [False, False, False, True, True]


def test_same_key_gives_the_same_sample_and_another_key_another():
    history = _history(3, 20)
    replay = make_replay(_config(), 3)
    state = replay.add(replay.init(_at(history, 0, 0)), _at(history, slice(None)))
    sample = jax.jit(replay.sample, static_argnums=2)
    first, again, other = (sample(state, jax.random.key(seed), 32).observation for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (np.asarray(first) != np.asarray(other)).any()


def test_only_the_truncation_mark_of_the_extras_is_stored():
    history = _history(3, 2)
    replay = make_replay(_config(), 3)
    assert set(replay.init(_at(history, 0, 0)).experience.extras) == {"truncated"}


def test_add_and_sample_compile_once():
    traces = {"add": 0, "sample": 0}
    history = _history(3, 30)
    replay = make_replay(_config(n_step=2), 3)

    @jax.jit
    def add(state, transitions):
        traces["add"] += 1
        return replay.add(state, transitions)

    @jax.jit
    def sample(state, key):
        traces["sample"] += 1
        return replay.sample(state, key, 16)

    state = replay.init(_at(history, 0, 0))
    for t in range(30):
        state = add(state, _at(history, slice(None), t))
        sample(state, jax.random.key(t))
    assert traces == {"add": 1, "sample": 1}


def test_buffer_too_small_to_start_is_refused():
    with pytest.raises(ValueError, match=r"replay_size: expected at least 128 .*got 100; raise replay_size"):
        make_replay(_config(replay_size=100, learning_starts=100), 64)


def test_more_steps_at_once_than_the_buffer_holds_are_refused():
    replay, history = make_replay(_config(replay_size=12), 4), _history(4, 5)
    state = replay.init(_at(history, 0, 0))
    with pytest.raises(
        ValueError, match=r"replay_size: expected at least 20 \(5 steps at once of num_envs=4\), got 12"
    ):
        replay.add(state, history)


def test_missing_truncation_mark_is_named():
    example = Transition(jnp.zeros(2), jnp.zeros(1), jnp.zeros(()), jnp.ones(()), jnp.zeros(2))
    with pytest.raises(ValueError, match='extras: expected the key "truncated", got '):
        make_replay(_config(), 3).init(example)
