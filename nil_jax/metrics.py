"""Metrics of a run: JSON lines and TensorBoard, and reading them back."""

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path


class MetricsLog:
    """Appends rows of numbers to `metrics.jsonl` and to TensorBoard in the same folder.

    Args:
        folder: of the run.
        resumed: the control steps of the checkpoint from which a run goes on: later rows are dropped, because the run
            makes them again.
    """

    def __init__(self, folder: Path, resumed: int = 0):
        from tensorboardX import SummaryWriter

        path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(folder) if row["step"] <= resumed]
        partial = path.with_suffix(".tmp")
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
        partial.replace(path)
        self._file = path.open("a")
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=resumed + 1 if resumed else None)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One row; `step` counts control steps over all environments."""
        numbers = {name: float(value) for name, value in values.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()
        for name, value in finite.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes and closes both."""
        self._file.close()
        self._writer.close()


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of a run in the order of writing; a last line that was cut off is left out."""
    rows = []
    path = folder / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows
