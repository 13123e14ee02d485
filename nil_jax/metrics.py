"""Metrics of a run: JSON lines, TensorBoard and Weights & Biases, and reading them back."""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nil_jax import parallel
from nil_jax.optional import hidden, require_wandb

MAX_FLOAT = sys.float_info.max


class MetricsLog:
    """Appends rows of numbers to `metrics.jsonl` and to TensorBoard in the same folder, and to Weights & Biases.

    Args:
        folder: of the run.
        resumed: the control steps of the checkpoint from which a run goes on: later rows are dropped, because the run
            makes them again.
        wandb_run: from `start_wandb`; it keeps the rows it has.
    """

    def __init__(self, folder: Path, resumed: int = 0, wandb_run: Any = None):
        with hidden("torch"):  # which tensorboardX imports, for seconds and for nothing that is used here
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog

        path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(folder) if row["step"] <= resumed]
        partial = path.with_suffix(".tmp")
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
        partial.replace(path)
        self._file = path.open("a")
        # Not its SummaryWriter: the thread of that one dies where the clock goes back far, and then all wait for it.
        (folder / "tensorboard").mkdir(exist_ok=True)
        self._events = EventsWriter(str(folder / "tensorboard" / "events"))
        if resumed:
            purge = Event(wall_time=time.time(), step=resumed + 1, session_log=SessionLog(status=SessionLog.START))
            self._events.write_event(purge)
        self._wandb = wandb_run

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One row; `step` counts control steps over all environments."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        numbers = {name: float(value) for name, value in values.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()
        known = {name: value for name, value in finite.items() if value is not None}
        for name, value in known.items():
            self._events.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
        self._events.flush()
        if self._wandb is not None:
            self._wandb.log(known, step=step)

    def close(self) -> None:
        """Flushes and closes all."""
        self._file.close()
        self._events.close()
        if self._wandb is not None:
            self._wandb.finish()


def check_wandb() -> None:
    """Makes sure, before a run does anything that takes long, that it can log to Weights & Biases.

    Raises:
        ValueError: wandb is not installed, or nobody is logged in.
    """
    wandb = require_wandb()
    if parallel.is_first() and os.environ.get("WANDB_MODE", "online") == "online":
        with _refused(wandb):
            wandb.login(verify=False)  # asks for a key, on a terminal


def start_wandb(folder: Path, project: str, config: Mapping[str, Any]) -> Any:
    """A run at Weights & Biases, or that of the folder again: its id is kept there.

    Args:
        folder: of the run; files of wandb go there too.
        project: of Weights & Biases.
        config: settings to show there.

    Raises:
        ValueError: wandb is not installed, or refuses.
    """
    wandb = require_wandb()
    kept = folder / "wandb_id.txt"
    settings = wandb.Settings(console="off", silent=True)  # the terminal is the progress bar's
    with _refused(wandb):
        run = wandb.init(
            project=project,
            name=folder.resolve().name,
            id=kept.read_text().strip() if kept.exists() else None,
            resume="allow",
            reinit="create_new",  # several seeds are several runs of one process
            dir=folder,
            config=dict(config),
            settings=settings,
        )
    kept.write_text(f"{run.id}\n")
    return run


@contextlib.contextmanager
def _refused(wandb: Any) -> Iterator[None]:
    """Tells in one line what wandb does not like."""
    try:
        yield
    except wandb.Error as error:
        said = " ".join(str(error).split())
        raise ValueError(
            f"wandb: expected to be logged in, got: {said} Type: wandb login, or set WANDB_MODE=offline"
        ) from None


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of a run in the order of writing; a last line that was cut off is left out."""
    rows = []
    path = folder / "metrics.jsonl"
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("step"), int) and all(map(_is_value, row.values())):
                rows.append(row)
    return rows


def _is_value(value: Any) -> bool:
    """What `MetricsLog` writes: a number of double precision, or None for one that was not finite."""
    return value is None or (isinstance(value, int | float) and abs(value) <= MAX_FLOAT)
