"""Where this library keeps what it can make again: compiled programs and convex pieces of meshes."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$NIL_JAX_CACHE`, or `nil_jax` in the user's cache folder."""
    chosen = os.environ.get("NIL_JAX_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "nil_jax"


def use_compilation_cache() -> None:
    """Keeps compiled programs in the user's cache folder, unless JAX_COMPILATION_CACHE_DIR says otherwise."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
