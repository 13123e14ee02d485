"""Networks: one LayerNorm torso, an actor head and a twin critic.

Axes: B batch, I input, O observation, A action, H width, P = 2 A, Z values per critic. Parameters and outputs are
float32; matrix products run in the dtype given, normalisation always in float32.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float


class Torso(nn.Module):
    """Layers of `relu(LayerNorm(Dense(x)))`; with `residual`, `relu(x + LayerNorm(Dense(x)))` where widths agree.

    LayerNorm in every layer, and a skip around it, is what lets critics take many updates per step (Nauman et al. 2024,
    BRO, arXiv 2405.16158). Their block has two products; one keeps the cost of a plain network of the same widths.
    """

    hidden: tuple[int, ...]
    residual: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B H"]:
        """Features of an input."""
        for width in self.hidden:
            y = nn.LayerNorm(dtype=jnp.float32)(nn.Dense(width, dtype=self.dtype)(x))
            x = nn.relu(x + y if self.residual and x.shape[-1] == width else y)
        return x


class Actor(nn.Module):
    """Parameters of a tanh-normal policy: `[.., 2 A]`, means before tanh and raw scales."""

    action_size: int
    hidden: tuple[int, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, observation: Float[Array, "*B O"]) -> Float[Array, "*B P"]:
        """Means before tanh, then raw scales, of the action's distribution."""
        x = Torso(self.hidden, residual=False, dtype=self.dtype)(observation)
        # A small head starts every robot at the middle of its action range, whatever the observation.
        small = nn.initializers.variance_scaling(1e-4, "fan_in", "truncated_normal")
        return nn.Dense(2 * self.action_size, dtype=jnp.float32, kernel_init=small)(x)


class Critic(nn.Module):
    """Z values of an observation and an action: `[.., Z]`."""

    hidden: tuple[int, ...]
    num_values: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, observation: Float[Array, "*B O"], action: Float[Array, "*B A"]) -> Float[Array, "*B Z"]:
        """Values of a normalised observation and an action."""
        x = jnp.concatenate([observation, action], axis=-1)
        x = Torso(self.hidden, residual=True, dtype=self.dtype)(x)
        return nn.Dense(self.num_values, dtype=jnp.float32)(x)


_Twins = nn.vmap(Critic, variable_axes={"params": 0}, split_rngs={"params": True}, axis_size=2)


class TwinCritic(nn.Module):
    """Two critics as one network whose parameters carry a leading axis [2]: one batched product, not two small ones."""

    hidden: tuple[int, ...]
    num_values: int
    dtype: Any = jnp.float32

    def setup(self):
        """Parameters lie where those of one critic would."""
        self.twins = _Twins(self.hidden, self.num_values, self.dtype)
        nn.share_scope(self, self.twins)

    def __call__(self, observation: Float[Array, "*B O"], action: Float[Array, "*B A"]) -> Float[Array, "2 *B Z"]:
        """Both critics' values of a normalised observation and an action."""
        # Each twin gets inputs of its own. From shared ones XLA makes one wide first layer, and then copies.
        return self.twins(*(jnp.broadcast_to(x, (2, *x.shape)) for x in (observation, action)))
