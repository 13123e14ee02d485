"""Checkpoints of whole pytrees by orbax, atomic and in numbered steps.

Orbax rejects arrays of size zero, of which an `mjx.Data` holds many, and typed keys: non-empty leaves are saved by
path, and a template gives the structure and the rest.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from nil_jax.files import check_only_files, one_line


class _Misfit(ValueError):
    """A checkpoint that is whole, but another's."""


class Checkpoints:
    """The checkpoints of one run: named parts, saved together under a step number.

    Args:
        folder: where they are; made on the first save.
        keep: how many of the newest are kept.
    """

    def __init__(self, folder: Path, keep: int = 2):
        self.folder = folder.resolve()
        # Without its look into every checkpoint a damaged one does not stand in the way of the others.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=False, lightweight_initialize=True
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    @property
    def latest(self) -> int | None:
        """The newest whole checkpoint's step."""
        return self._manager.latest_step()

    def save(self, step: int, parts: Mapping[str, Any]) -> None:
        """Writes the parts as one checkpoint; one that breaks off leaves the earlier ones whole."""
        items = {name: ocp.args.StandardSave(_leaves(tree)) for name, tree in parts.items()}
        self._manager.save(step, args=ocp.args.Composite(**items))
        self._manager.wait_until_finished()

    def forget_newer(self, step: int) -> None:
        """Deletes the checkpoints behind a step: a run that goes on from there makes them again."""
        for newer in [found for found in self._manager.all_steps() if found > step]:
            self._manager.delete(newer)

    def restore(self, templates: Mapping[str, Any], step: int | None = None) -> dict[str, Any]:
        """The named parts of the newest checkpoint, or of that of a step, in the structure of their templates.

        A template holds arrays, or is the `outline` of what does.

        Raises:
            ValueError: no checkpoint, one whose leaves do not fit the templates, or one that cannot be read.
            JaxRuntimeError: too little memory on the device, or another process of the run has gone.
        """
        if self.latest is None:
            raise ValueError(f"checkpoint: expected at least one in {self.folder}, got none; train first")
        step = self.latest if step is None else step
        wanted = {name: _leaves(tree) for name, tree in templates.items()}
        try:
            found = self._read(wanted, step)
        except (_Misfit, jax.errors.JaxRuntimeError, MemoryError):  # nothing that is wrong with its files
            raise
        except Exception as error:  # orbax and what it stands on have errors of many kinds for a damaged file
            raise ValueError(
                f"checkpoint: expected a whole one in {self.folder / str(step)}, got one that cannot be read "
                f"({one_line(error)}); if it is damaged, move that folder away to go on from the one before it"
            ) from error
        return {name: _fill(templates[name], found[name]) for name in templates}

    def _read(self, wanted: Mapping[str, Mapping[str, Any]], step: int) -> Any:
        for name, leaves in wanted.items():
            part = self.folder / str(step) / name
            if not part.is_dir():
                raise _Misfit(f"checkpoint: expected the part {name!r} in {self.folder}, got one without")
            check_only_files(part, "checkpoint")
            shapes = {path: leaf.shape for path, leaf in ocp.StandardCheckpointHandler().metadata(part).tree.items()}
            differing = [p for p in {*shapes, *leaves} if p not in leaves or shapes.get(p) != leaves[p].shape]
            if differing:
                raise _Misfit(
                    f"checkpoint: expected one of the same settings in {self.folder}, got another: "
                    f"{len(differing)} arrays differ, such as {min(differing)}"
                )
        items = {name: ocp.args.StandardRestore(leaves) for name, leaves in wanted.items()}
        return self._manager.restore(step, args=ocp.args.Composite(**items))

    def close(self) -> None:
        """Frees what orbax holds open."""
        self._manager.close()


def outline(tree: Any) -> Any:
    """The same without its memory, as a template: arrays that hold something become their shape, dtype and sharding."""

    def described(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or not leaf.size:
            return leaf
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)

    return jax.tree.map(described, tree)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf: Any) -> jax.Array | jax.ShapeDtypeStruct:
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.random.key_data(leaf) if _is_key(leaf) else jnp.asarray(leaf)
    if not _is_key(leaf):
        return leaf
    numbers = jax.eval_shape(jax.random.key_data, leaf)
    return jax.ShapeDtypeStruct(numbers.shape, numbers.dtype, sharding=leaf.sharding)


def _leaves(tree: Any) -> dict[str, jax.Array | jax.ShapeDtypeStruct]:
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    plain = {jax.tree_util.keystr(path): _plain(leaf) for path, leaf in paths}
    return {path: leaf for path, leaf in plain.items() if leaf.size}


def _fill(template: Any, leaves: Mapping[str, jax.Array]) -> Any:
    def pick(path: tuple, leaf: Any) -> Any:
        found = leaves.get(jax.tree_util.keystr(path))
        if found is None:
            return leaf
        return jax.random.wrap_key_data(found) if _is_key(leaf) else found

    return jax.tree_util.tree_map_with_path(pick, template)
