"""Packages that only some settings need."""

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
