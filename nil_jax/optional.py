"""Packages that only some settings need."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mujoco.mjx import warp as mjx_warp


def require_warp(setting: str) -> None:
    """Makes Warp ready for use: it would otherwise talk on standard output, where commands print their JSON.

    Args:
        setting: what asks for it, for the message.

    Raises:
        ValueError: Warp is not installed.
    """
    if not mjx_warp.WARP_INSTALLED:
        raise ValueError(f'{setting}: expected the package warp-lang, got none; type: pip install "nil-jax[warp]"')
    mjx_warp.warp.config.log_level = mjx_warp.warp.LOG_WARNING


@contextmanager
def hidden(name: str) -> Iterator[None]:
    """Within it a package that nobody has imported yet looks as if it were not installed."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None
    try:
        yield
    finally:
        del sys.modules[name]


def require_wandb() -> Any:
    """The package wandb, which logs to Weights & Biases.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import wandb
    except ImportError:
        raise ValueError('wandb: expected the package, got none; type: pip install "nil-jax[wandb]"') from None
    return wandb
