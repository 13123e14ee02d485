"""How signatures are checked while the tests run."""

from collections.abc import Callable

import jax
import numpy as np
from beartype import BeartypeConf, FrozenDict, beartype

# An int is a float, as for type checkers; plain `Array` admits whatever JAX's own functions take, and `int` NumPy's.
_OVERRIDES = FrozenDict({jax.Array: jax.typing.ArrayLike, int: int | np.integer})
_checked = beartype(conf=BeartypeConf(is_pep484_tower=True, hint_overrides=_OVERRIDES))


def typechecker(function: Callable) -> Callable:
    """beartype for all functions but the constructors of dataclasses: JAX also builds those from shapes and markers."""
    return function if function.__name__ == "__init__" else _checked(function)
