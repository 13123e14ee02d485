import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nil_jax.learning import losses

# float32 sums over at most a few hundred terms of order one.
FLOAT32_SUM = 2e-5
# 2001 samples, 0.01 apart, stand for a continuous distribution.
SAMPLED = 0.01

pytestmark = pytest.mark.usefixtures("strict_promotion")


def _normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_quantile_loss_equals_four_nested_loops():
    quantiles, target = 2.0 * _normal(0, 2, 5, 7), 2.0 * _normal(1, 5, 7)
    expected = 0.0
    for twin in range(2):
        for b in range(5):
            for i in range(7):
                for j in range(7):
                    error = float(target[b, j]) - float(quantiles[twin, b, i])
                    huber = 0.5 * error**2 if abs(error) <= 1.0 else abs(error) - 0.5
                    expected += abs((2 * i + 1) / 14 - (error < 0)) * huber / 7 / 5
    actual = losses.quantile_critic_loss(jnp.asarray(quantiles), jnp.asarray(target))
    np.testing.assert_allclose(actual, expected, rtol=FLOAT32_SUM)


def test_quantile_loss_is_least_at_the_quantiles_of_the_target():
    samples = jnp.asarray(np.linspace(-10.0, 10.0, 2001, dtype=np.float32))[None]
    gradient = jax.jit(jax.grad(losses.quantile_critic_loss))
    quantiles = jnp.zeros((2, 1, 4))
    for _ in range(400):
        quantiles = quantiles - 2.0 * gradient(quantiles, samples)
    # Levels 1/8, 3/8, 5/8, 7/8 of a uniform distribution on [-10, 10]. Plain quantiles would be 10 (2 tau - 1); Huber's
    # function of width 1 balances tau (9.5 - x) = (1 - tau) (9.5 + x), so 9.5 (2 tau - 1).
    np.testing.assert_allclose(quantiles[0, 0], 9.5 * np.array([-0.75, -0.25, 0.25, 0.75]), atol=SAMPLED)


def test_twin_loss_equals_a_loop():
    values, target = _normal(2, 2, 6, 1), _normal(3, 6, 1)
    expected = sum(0.5 * (values[t, b, 0] - target[b, 0]) ** 2 / 6 for t in range(2) for b in range(6))
    actual = losses.twin_critic_loss(jnp.asarray(values), jnp.asarray(target))
    np.testing.assert_allclose(actual, expected, rtol=FLOAT32_SUM)


def test_target_by_hand():
    reward, discount = jnp.array([1.0, 1.0, 1.0]), jnp.array([1.0, 0.0, 0.9])
    next_values = jnp.array([[10.0, 20.0], [10.0, 20.0], [10.0, 20.0]])
    log_prob = jnp.array([2.0, 2.0, -2.0])
    target = losses.td_target(reward, discount, next_values, log_prob, jnp.array(0.5), 0.9)
    expected = [[1 + 0.9 * 9, 1 + 0.9 * 19], [1, 1], [1 + 0.81 * 11, 1 + 0.81 * 21]]
    np.testing.assert_allclose(target, expected, rtol=FLOAT32_SUM)


def test_target_carries_no_gradient():
    ones = jnp.ones(3)
    gradient = jax.grad(lambda v: losses.td_target(ones, ones, v, ones, jnp.array(0.1), 0.9).sum())(jnp.ones((3, 2)))
    np.testing.assert_array_equal(gradient, np.zeros((3, 2)))


@pytest.mark.parametrize(("pessimism", "join"), [(1.0, np.minimum), (0.0, lambda a, b: (a + b) / 2)])
def test_scalar_twins_join_as_minimum_or_mean(pessimism, join):
    values = _normal(4, 2, 9, 1)
    actual = losses.pessimistic_values(jnp.asarray(values), pessimism)
    np.testing.assert_allclose(actual, join(values[0], values[1]), rtol=FLOAT32_SUM, atol=1e-6)


def test_full_pessimism_takes_all_quantiles_of_the_twin_with_the_lower_mean():
    values = _normal(5, 2, 9, 4)
    expected = [values[int(values[1, b].mean() < values[0, b].mean()), b] for b in range(9)]
    np.testing.assert_allclose(losses.pessimistic_values(jnp.asarray(values), 1.0), expected, rtol=FLOAT32_SUM)


def test_actor_loss_equals_a_loop():
    log_prob, value = _normal(6, 8), _normal(7, 8)
    expected = sum(0.3 * log_prob[b] - value[b] for b in range(8)) / 8
    actual = losses.actor_loss(jnp.asarray(log_prob), jnp.asarray(value), jnp.array(0.3))
    np.testing.assert_allclose(actual, expected, rtol=FLOAT32_SUM)


def test_temperature_rises_while_entropy_is_below_its_target():
    target_entropy = -2.0
    for entropy, sign in ((-3.0, -1.0), (-1.0, 1.0)):
        log_prob = jnp.full(4, -entropy)
        loss, gradient = jax.value_and_grad(losses.alpha_loss)(jnp.array(-1.0), log_prob, target_entropy)
        np.testing.assert_allclose(loss, np.exp(-1.0) * (entropy - target_entropy), rtol=FLOAT32_SUM)
        assert np.sign(gradient) == sign, "gradient descent moves log_alpha against the gradient"
