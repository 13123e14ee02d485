"""Where this library keeps what it can make again: compiled programs, pieces of meshes, converted weights."""

import gc
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def cache_folder() -> Path:
    """`$NIL_JAX_CACHE`, or `nil_jax` in the user's cache folder."""
    chosen = os.environ.get("NIL_JAX_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "nil_jax"


def use_compilation_cache() -> None:
    """Keeps compiled programs in the user's cache folder, unless JAX_COMPILATION_CACHE_DIR says otherwise."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@contextmanager
def gc_paused() -> Iterator[None]:
    """For tracing: what a trace makes lives on, and to look for garbage in it, again and again, takes long."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def keep(file: Path, write: Callable[[Any], Any]) -> None:
    """Writes a file of the cache, under another name first: a reader never sees half of it.

    A folder that cannot be written is no error: what is kept there can be made again.

    Args:
        file: Its folder is made.
        write: Called with a binary stream.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=file.parent, suffix=".tmp")
    except OSError:
        return
    try:
        with os.fdopen(handle, "wb") as stream:
            write(stream)
        os.replace(name, file)
    except OSError:
        Path(name).unlink(missing_ok=True)
