"""Draws what the evaluations of a run measured while it learned: reward of the walk, falls, distance, IoU, pose, feet.

python examples/learning_curves.py runs/h1 -o h1_learning.png
"""

import argparse
from pathlib import Path

from nil_jax.metrics import read_metrics
from nil_jax.report import curves

MEASURES = {
    "locomotion": "environment reward [of 400]",
    "fall": "episodes with a fall [share]",
    "distance": "distance in 10 s [m]",
    "mask_iou": "mask IoU",
    "pose_error": "pose error [m]",
    "foot_slip": "foot slip [m/s]",
}


def main() -> None:
    """Writes the picture."""
    command = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    command.add_argument("run", type=Path)
    command.add_argument("-o", "--output", type=Path, required=True, metavar="PNG")
    options = command.parse_args()
    names = [(f"evaluation/{name}", title) for name, title in MEASURES.items()]
    picture = curves(read_metrics(options.run), names)
    if picture is None:
        raise SystemExit(f"expected a run that has been evaluated, got {options.run}")
    options.output.write_bytes(picture)


if __name__ == "__main__":
    main()
