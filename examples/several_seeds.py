"""Trains several seeds and prints what they reached: mean and 95 % interval, since one seed says little.

    python examples/several_seeds.py unitree_a1 examples/a1_prowl.mp4 -o runs/seeds --seeds 5 --num-timesteps 75000

Other flags, behind these, go to `nil-jax train`. Seeds that are done in the folder are not trained again, so the
command can be stopped and repeated, or repeated with more seeds; with other flags it is refused.
"""

import argparse
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from nil_jax import cli

MEASURES = {"return": "", "mask_iou": "", "distance": "m", "fall": "of the episodes"}


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Mean, and half of the width of its Student t interval; NaN for a single value."""
    count = len(values)
    if count < 2:
        return float(np.mean(values)), float("nan")
    return float(np.mean(values)), float(stats.t.ppf((1 + confidence) / 2, count - 1) * stats.sem(values))


def trained(robot: str, clip: str, folder: Path, flags: list[str]) -> dict[str, float]:
    """What the policy of a run reached in its last evaluation; trains it, or goes on, where it is not there yet."""
    found = folder / "evaluation.json"
    if not found.is_file():
        begun = folder / "run.json"  # empty: it was stopped before it began
        resume = ["--resume"] if begun.is_file() and begun.stat().st_size else []
        cli.main(["train", robot, clip, "-o", str(folder), *flags, *resume])
    return json.loads(found.read_text())["policy"]


def check_same(command: list[str], output: Path) -> None:
    """Refuses to go on in a folder with another robot, clip or flags: those would be no seeds of one mean."""
    path, got = output / "command.txt", shlex.join(command)
    if not path.is_file():
        output.mkdir(parents=True, exist_ok=True)
        path.write_text(got + "\n")
    elif (asked := path.read_text(errors="replace").strip()) != got:
        raise SystemExit(f"several_seeds.py: expected the command of {output}: {asked}; got {got}; type another -o")


def main(arguments: list[str] | None = None) -> None:
    """Trains, and prints the table."""
    about = {"description": __doc__.splitlines()[0], "epilog": "Other flags, behind these, go to nil-jax train."}
    command = argparse.ArgumentParser(**about, allow_abbrev=False)
    command.add_argument("robot", help="unitree_a1, or the path of an MJCF file")
    command.add_argument("clip", help="video, or (faster: it is prepared once) a folder of nil-jax prepare")
    command.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="of the runs")
    command.add_argument("--seeds", type=int, default=5, metavar="N", help="how many, from 0 (default: %(default)s)")
    options, flags = command.parse_known_args(arguments)
    check_same([options.robot, options.clip, *flags], options.output)
    folders = [options.output / f"seed_{seed}" for seed in range(options.seeds)]
    rows = [
        trained(options.robot, options.clip, folder, [*flags, "--seed", str(seed)])
        for seed, folder in enumerate(folders)
    ]
    for name, unit in MEASURES.items():
        mean, half = interval([row[name] for row in rows])
        print(f"{name:10s} {mean:8.2f} ± {half:.2f} {unit}".rstrip())


if __name__ == "__main__":
    main()
