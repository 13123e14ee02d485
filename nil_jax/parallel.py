"""Several devices, of one host or of many: each has its share of environments, replay and batch, all have the learner.

Axes: D devices. What is split carries a leading axis [D], of which each device sees its own entry.
"""

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "devices"
HEARTBEAT = 30  # s without a sign of life, after which a process counts as gone, where nobody waits for its data
SPLIT, REPEATED = PartitionSpec(AXIS), PartitionSpec()


def join(**settings: Any) -> None:
    """Joins this process to the others of a run; before anything else uses JAX.

    Args:
        **settings: of `jax.distributed.initialize`, which finds SLURM, Open MPI, Kubernetes and TPU pods without any.

    Raises:
        ValueError: there are no others to be found.
    """
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT, **settings)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            "distributed: expected processes that SLURM, Open MPI, Kubernetes or a TPU pod started, or --coordinator "
            f"HOST:PORT --num-processes P --process-id I in each of them; got: {str(error).splitlines()[0]}"
        ) from None


def leave(code: int) -> NoReturn:
    """Ends this process; one of several at once, since its usual end would wait for the others for minutes."""
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def own_device() -> Any:
    """The first device of this process: left to itself, MJX takes the first one of all processes."""
    return jax.local_devices()[0]


def use_cpu_devices(count: int) -> None:
    """Makes a CPU look like so many devices; without effect once JAX is in use, and on an accelerator."""
    with contextlib.suppress(RuntimeError):  # JAX is in use
        jax.config.update("jax_num_cpu_devices", count)


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def make_mesh(num_devices: int) -> Mesh:
    """The first devices of all processes in one row.

    Raises:
        ValueError: fewer are there, or a process would have none.
    """
    devices = jax.devices()
    whole = jax.process_count() > 1 and num_devices != len(devices)
    if num_devices > len(devices) or whole:
        expected = f"all {len(devices)}" if whole else f"at most {len(devices)}"
        raise ValueError(f"num_devices: expected {expected}, which JAX has here, got {num_devices}")
    return Mesh(np.array(devices[:num_devices]), (AXIS,))


def behind_an_axis(specs: Any) -> Any:
    """The same specs for leaves with one more leading axis, which every device has whole."""
    return _over_specs(lambda spec: PartitionSpec(None, *spec), specs)


def shardings(mesh: Mesh, specs: Any) -> Any:
    """Where the leaves of a tree of specs lie."""
    return _over_specs(lambda spec: NamedSharding(mesh, spec), specs)


def _over_specs(function: Callable[[PartitionSpec], Any], specs: Any) -> Any:
    return jax.tree.map(function, specs, is_leaf=lambda x: isinstance(x, PartitionSpec))


def own(tree: Any) -> Any:
    """On a device, its entry of what is split."""
    return jax.tree.map(lambda leaf: leaf[0], tree)


def entry(tree: Any) -> Any:
    """On a device, the opposite of `own`."""
    return jax.tree.map(lambda leaf: leaf[None], tree)


def first_copy(tree: Any) -> Any:
    """Of what all devices have, the copy of this process's first one."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def any_process(flag: bool) -> bool:
    """Whether it holds in any process; all of them must ask."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def of_the_first(number: int) -> int:
    """What the first process has, in all of them."""
    return number if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def wait_for_all(where: str) -> None:
    """Returns when every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)
