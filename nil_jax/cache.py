"""Where this library keeps what it can make again: compiled programs and convex pieces of meshes."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$NIL_JAX_CACHE`, or `nil_jax` in the user's cache folder."""
    chosen = os.environ.get("NIL_JAX_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "nil_jax"
