"""What every benchmark shares: the command line, one form of row, a table on the screen and a JSON file.

A row says what was measured, its value and unit, the same number of a peer from the same run, and their ratio, which is
above 1 where this project is better.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

REPEATS = 5
PACKAGES = ("nil-jax", "jax", "mujoco", "mujoco-mjx")


def parser(description: str) -> argparse.ArgumentParser:
    """A command line with the options that all benchmarks have: --quick (the default), --full, --json FILE."""
    command = argparse.ArgumentParser(description=description)
    size = command.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="ends within a minute or two on two CPU cores (default)")
    size.add_argument("--full", action="store_true", help="the sizes that are reported")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the rows to this file")
    return command


def run(main: Callable[[], None]) -> None:
    """The entry point of a script: what is wrong with its arguments is said in one line, as `nil-jax` does."""
    from nil_jax.cli import guarded

    guarded(main, Path(sys.argv[0]).name)


def row(
    what: str,
    value: float,
    unit: str,
    peer: str | None = None,
    peer_value: float | None = None,
    *,
    higher_is_better: bool = True,
    device: str | None = None,
) -> dict:
    """One measured number; `device` is where it was measured (default: the one that JAX uses)."""
    ratio = None
    if peer_value is not None and value > 0 and peer_value > 0:  # of others a ratio says nothing
        ratio = value / peer_value if higher_is_better else peer_value / value
    return {
        "what": what,
        "value": value,
        "unit": unit,
        "peer": peer,
        "peer_value": peer_value,
        "ratio": ratio,
        "device": device or jax_device(),
        "versions": versions(),
    }


def write(rows: list[dict], path: Path | None) -> None:
    """Print the rows as a table; write them to `path` as JSON if one is given."""
    devices = ", ".join(dict.fromkeys(entry["device"] for entry in rows))
    table = Table("what", "value", "unit", "peer", "peer value", "ratio", title=devices)
    for entry in rows:
        numbers = [f"{entry[key]:.4g}" if entry[key] is not None else "" for key in ("value", "peer_value", "ratio")]
        table.add_row(entry["what"], numbers[0], entry["unit"], entry["peer"] or "", numbers[1], numbers[2])
    Console().print(table)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows, indent=2) + "\n")


def best_seconds(compiled: Callable, *arguments: Any) -> float:
    """Seconds of the fastest of a few calls."""
    from nil_jax.capacity import best_seconds

    return best_seconds(compiled, *arguments, calls=REPEATS)


def cpu() -> str:
    """This machine's processor, for rows that no accelerator had a part in."""
    return f"CPU, {os.cpu_count()} cores, {platform.machine()}"


def jax_device() -> str:
    """The device that JAX computes on."""
    import jax

    device = jax.devices()[0]
    return cpu() if device.platform == "cpu" else device.device_kind


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a number depends on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
