"""Frames as the encoders' networks take them.  Axes: H W image; S side of a square image."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped


def square_pixels(frames: Shaped[Array, "*batch h w c"], size: int) -> Float[Array, "*batch s s 3"]:
    """Pixels in [0, 255], resized with an antialiased triangle filter.

    Args:
        frames: uint8 RGB, square, of any size.
        size: S of the result, px.

    Raises:
        TypeError: frames that are not uint8.
        ValueError: frames that are not square RGB: a crop would hide a part of the robot, so the caller decides.
    """
    if frames.dtype != jnp.uint8:
        raise TypeError(f"frames: expected uint8 in [0, 255], got {frames.dtype}; type: (255 * frames).astype('uint8')")
    if frames.ndim < 3 or frames.shape[-1] != 3 or frames.shape[-2] != frames.shape[-3]:
        raise ValueError(f"frames: expected square RGB [.., S, S, 3], got shape {frames.shape}; crop or pad them first")
    pixels = frames.astype(jnp.float32)
    if frames.shape[-2] != size:
        pixels = jax.image.resize(pixels, (*frames.shape[:-3], size, size, 3), "linear", antialias=True)
    return pixels
