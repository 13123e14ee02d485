"""Losses of the actor-critic: pure functions of arrays, each with its equation and source.

Axes: B batch, Z values per critic (1 for a scalar critic, the number of quantiles for a distributional one); the
leading 2 is the twin. A scalar critic is the case Z = 1, so targets and policies are written once for both kinds.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def pessimistic_values(values: Float[Array, "2 B Z"], pessimism: float) -> Float[Array, "B Z"]:
    """Join the twins: `w low + (1 - w) high` with `w = (1 + pessimism) / 2`, low being the twin of smaller mean.

    For scalar critics this is `mean(q1, q2) - pessimism |q1 - q2| / 2`: pessimism 1 is the clipped double Q-learning of
    Fujimoto et al. 2018 (arXiv 1802.09477, eq. 10), 0 the plain mean of Nauman et al. 2024 (BRO, arXiv 2405.16158).
    Quantile functions are mixed whole, so the result is a quantile function again.

    Args:
      values: both twins' values or quantiles.
      pessimism: 0 (mean) to 1 (minimum).

    Returns:
      The joined values or quantiles.
    """
    first, second = values[0], values[1]
    first_is_lower = jnp.mean(first, axis=-1, keepdims=True) <= jnp.mean(second, axis=-1, keepdims=True)
    weight_of_first = 0.5 + 0.5 * pessimism * jnp.where(first_is_lower, 1.0, -1.0)
    return weight_of_first * first + (1.0 - weight_of_first) * second


def td_target(
    reward: Float[Array, " B"],
    discount: Float[Array, " B"],
    next_values: Float[Array, "B Z"],
    next_log_prob: Float[Array, " B"],
    alpha: Float[Array, ""],
    gamma: float,
) -> Float[Array, "B Z"]:
    """Soft Bellman target `y = r + gamma d (Z(s', a') - alpha log pi(a'|s'))`, without gradient.

    Haarnoja et al. 2018 (arXiv 1812.05905, eqs. 3 and 6). `discount` is 0 after a termination, 1 after a time limit,
    and holds `gamma^(m - 1)` of an m-step window.

    Args:
      reward: the reward, summed over the window.
      discount: `(1 - terminated) gamma^(m - 1)`.
      next_values: values or quantiles of the next observation under an action of the current policy.
      next_log_prob: log density of that action.
      alpha: temperature.
      gamma: discount of one step.

    Returns:
      The values or quantiles that the critics should take.
    """
    soft_values = next_values - (alpha * next_log_prob)[:, None]
    return jax.lax.stop_gradient(reward[:, None] + (gamma * discount)[:, None] * soft_values)


def twin_critic_loss(values: Float[Array, "2 B Z"], target: Float[Array, "B Z"]) -> Float[Array, ""]:
    """Squared error `sum_twin mean_batch (Q - y)^2 / 2` (arXiv 1812.05905, eq. 5).

    Args:
      values: both critics' values of the stored action, Z = 1.
      target: what they should be.

    Returns:
      The loss.
    """
    return 0.5 * jnp.sum(jnp.mean(jnp.square(values - target[None]), axis=(1, 2)))


def quantile_critic_loss(quantiles: Float[Array, "2 B Z"], target: Float[Array, "B J"]) -> Float[Array, ""]:
    """Quantile Huber loss `sum_twin mean_batch sum_i mean_j |tau_i - 1{u_ij < 0}| H(u_ij)`, `u_ij = y_j - theta_i`.

    Dabney et al. 2017 (arXiv 1710.10044, eq. 10, kappa = 1) with `tau_i = (2 i + 1) / (2 Z)`, H being Huber's function:
    `u^2 / 2` within 1, `|u| - 1/2` beyond. It needs no range of returns, which C51 would ask the user for.

    Args:
      quantiles: both critics' quantiles of the return of the stored action.
      target: J equally likely values of the return.

    Returns:
      The loss.
    """
    num_quantiles = quantiles.shape[-1]
    levels = (jnp.arange(num_quantiles, dtype=quantiles.dtype) + 0.5) / num_quantiles
    error = target[None, :, None, :] - quantiles[:, :, :, None]  # [2, B, i, j]
    size = jnp.abs(error)
    within = jnp.minimum(size, 1.0)
    huber = within * (size - 0.5 * within)
    weight = jnp.abs(levels[None, None, :, None] - (error < 0.0).astype(quantiles.dtype))
    return jnp.sum(jnp.mean(weight * huber, axis=(1, 3)))


def actor_loss(log_prob: Float[Array, " B"], value: Float[Array, " B"], alpha: Float[Array, ""]) -> Float[Array, ""]:
    """Policy loss `mean(alpha log pi(a|s) - Q(s, a))` (arXiv 1812.05905, eq. 7).

    Args:
      log_prob: log density of reparametrised actions.
      value: the joined critics' value of those actions.
      alpha: temperature.

    Returns:
      The loss.
    """
    return jnp.mean(alpha * log_prob - value)


def alpha_loss(log_alpha: Float[Array, ""], log_prob: Float[Array, " B"], target_entropy: float) -> Float[Array, ""]:
    """Temperature loss `mean(-alpha (log pi(a|s) + target_entropy))` (arXiv 1812.05905, eq. 18).

    Args:
      log_alpha: log of the temperature.
      log_prob: log density of the policy's actions; no gradient flows into it.
      target_entropy: the entropy to hold, in nats, of the whole action.

    Returns:
      The loss: its gradient raises the temperature while the entropy is below target.
    """
    return -jnp.exp(log_alpha) * jnp.mean(jax.lax.stop_gradient(log_prob) + target_entropy)
