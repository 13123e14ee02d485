"""Words shared by every part: what one sample of experience is.

Axes: N environments, B batch, O observation, A action.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
from jaxtyping import Array, Float


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Transition:
    """One step of experience; any leading batch axes, the same on every field.

    `discount` is `1 - terminated`: zero only where the episode really ended, so a time limit needs no special case.
    `next_observation` is the true successor, before any automatic reset.
    """

    observation: Float[Array, "*batch O"]
    action: Float[Array, "*batch A"]  # in [-1, 1]
    reward: Float[Array, "*batch"]
    discount: Float[Array, "*batch"]  # 0 or 1; the learner multiplies by gamma
    next_observation: Float[Array, "*batch O"]
    extras: dict[str, Any] = field(default_factory=dict)  # "truncated" [*batch] float, 1 where a window must end
