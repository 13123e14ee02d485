"""Trains for minutes or hours, and says whether memory stays flat and speed steady.

python benchmarks/soak.py --minutes 60
"""

import tempfile
import time
from pathlib import Path

import common

import nil_jax
from nil_jax.run import Run

QUICK, FULL = 2.0, 60.0  # minutes
SETTINGS = {"num_envs": 16, "num_eval_envs": 1, "encoder": None, "learning_starts": 500, "replay_size": 20_000}
SETTINGS |= {"num_timesteps": 200_000, "num_evals": 50}


class Enough(Exception):
    """The time is over."""


def resident() -> float:
    """Memory that this process holds, MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def soaked(seconds: float) -> list[tuple[float, float, float]]:
    """Time (s), memory (MB) and speed (steps/s) behind each compiled call."""
    seen, started, log = [], [], Run.log

    def watched(run, step, metrics, sps):
        log(run, step, metrics, sps)
        started[:] = started or [time.monotonic()]
        seen.append((time.monotonic() - started[0], resident(), sps))
        if seen[-1][0] > seconds:
            raise Enough

    Run.log = watched
    try:
        while True:  # a run that ends is followed by the next one in this process
            with tempfile.TemporaryDirectory() as folder:
                nil_jax.train("unitree_a1", output=Path(folder) / "run", **SETTINGS)
    except Enough:
        return seen
    finally:
        Run.log = log


def main() -> None:
    """Prints and writes the rows."""
    command = common.parser(__doc__.splitlines()[0])
    command.add_argument("--minutes", type=float)
    options = command.parse_args()
    minutes = options.minutes or (FULL if options.full else QUICK)
    seen = soaked(60 * minutes)
    tenth = max(1, len(seen) // 10)
    (_, early, _), (_, late, _) = seen[tenth], seen[-1]
    first, last = (sum(sps for _, _, sps in part) / len(part) for part in (seen[tenth : 2 * tenth], seen[-tenth:]))
    name = f"soak of {minutes:g} minutes"
    rows = [
        common.row(f"{name}: memory at the end", late, "MB", "at 10 %", early, higher_is_better=False),
        common.row(f"{name}: speed in the last tenth", last, "steps/s", "in the second tenth", first),
    ]
    common.write(rows, options.json)


if __name__ == "__main__":
    common.run(main)
