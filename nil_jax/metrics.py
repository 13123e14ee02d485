"""Metrics of a run: JSON lines and TensorBoard, and reading them back."""

import json
import math
from collections.abc import Mapping
from pathlib import Path


class MetricsLog:
    """Appends rows of numbers to `metrics.jsonl` and to TensorBoard in the same folder."""

    def __init__(self, folder: Path):
        from tensorboardX import SummaryWriter

        self._file = (folder / "metrics.jsonl").open("a")
        self._writer = SummaryWriter(str(folder / "tensorboard"))

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


def read_metrics(folder: Path, until: int | None = None) -> list[dict[str, float]]:
    """The rows of a run in the order of writing; a last line that was cut off is left out.

    Args:
        folder: of the run.
        until: leave out rows behind this step (a resumed run repeats what came after its checkpoint).
    """
    rows = []
    path = folder / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if until is None or row["step"] <= until:
            rows.append(row)
    return rows
