"""Packages that only some settings need."""

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
