"""Which terms of the reward matter: the same short training without each of them, and with each alone.

    python benchmarks/ablation.py REFERENCE -o FOLDER [--only VARIANT ...] [--quick | --full] [--json FILE]

REFERENCE is a folder that `nil-jax prepare` made. One seed each of the preset "cpu": with `--full` 400,000 steps
(twenty minutes on one CPU core), with `--quick` 4,000, which only show that it runs. Each variant has a run
folder in FOLDER; one that is finished is not trained again, so several calls, each with `--only`, may share the work.
"""

import json
from pathlib import Path

import common
import numpy as np

import nil_jax
from nil_jax.config import flatten, load_config
from nil_jax.reference import Reference
from nil_jax.rewards import REGULARIZER_TERMS

STEPS = {"quick": 4_000, "full": 400_000}
MEASURES = {
    "locomotion": "of 400",
    "fall": "of the episodes",
    "length": "s",
    "mask_iou": "",
    "pose_error": "m",
    "foot_slip": "m/s",
}
LOWER_IS_BETTER = ("fall", "pose_error", "foot_slip")
PEER = "zero action"  # follows the clip's poses without corrections; where there are none, it stands


def without(*terms: str) -> dict[str, float]:
    """Settings that take terms out of the reward."""
    return {f"{term}_weight": 0.0 for term in terms}


MOTION, PICTURE = ("pose", "travel"), ("video", "outline")
UNTRACKED = {"starts": "rest", "targets": "stand", "lost_pose": 0.0}
VARIANTS = {
    "whole reward": {},
    "without video": without("video"),
    "without masks": without("outline"),
    "without poses": without(*MOTION),
    "without regularisation": without(*REGULARIZER_TERMS),
    "only video": without("outline", *MOTION, *REGULARIZER_TERMS),
    "only masks": without("video", *MOTION, *REGULARIZER_TERMS),
    "only poses": without(*PICTURE, *REGULARIZER_TERMS),
    "only regularisation": without(*PICTURE, *MOTION),
    # The published terms on what the published method has: no poses of the clip in starts, targets and ends.
    "published terms, no poses": {"reward": "paper", **UNTRACKED},
}


def outcome(robot: str, reference: Reference, folder: Path, steps: int, settings: dict) -> dict[str, dict[str, float]]:
    """The evaluation of a variant's run, which is trained, or trained on, unless it is finished.

    One of another clip or other settings is refused.
    """
    begun = (folder / "config.json").is_file()
    if begun:
        there, wanted = flatten(load_config(folder / "config.json")), settings | {"num_timesteps": steps}
        other = {name: there[name] for name, value in wanted.items() if name in there and there[name] != value}
        if other:
            raise SystemExit(f"ablation.py: expected the settings asked for in {folder}, got {other}; type another -o")
        if not np.array_equal(Reference.load(folder / "reference").masks, reference.masks):
            raise SystemExit(f"ablation.py: expected a run of the given reference in {folder}; type another -o")
    if not (folder / "evaluation.json").is_file():
        more = {"num_timesteps": steps, "num_evals": 4, "resume": begun}
        nil_jax.train(robot, reference, output=folder, **more, **settings)
    return json.loads((folder / "evaluation.json").read_text())


def main() -> None:
    """Prints the rows."""
    command = common.parser(__doc__.splitlines()[0])
    command.add_argument("reference", type=Path)
    command.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    command.add_argument("--robot", metavar="MJCF", help="that the reference is of, if it is not one of the package")
    command.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    command.add_argument("--num-timesteps", type=int, metavar="STEPS", help="in place of those of the size")
    delay = nil_jax.Config().learner.policy_delay
    command.add_argument("--policy-delay", type=int, default=delay, help="of the learner (default: %(default)s)")
    options = command.parse_args()
    reference = Reference.load(options.reference)
    robot = options.robot or reference.provenance["robot"]
    steps = STEPS["full" if options.full else "quick"] if options.num_timesteps is None else options.num_timesteps
    rows = []
    for name in options.only:
        folder = options.output / name.replace(" ", "_").replace(",", "")
        settings = VARIANTS[name] | {"policy_delay": options.policy_delay}
        found = outcome(robot, reference, folder, steps, settings)
        for what, unit in MEASURES.items():
            if what not in found["policy"]:  # without poses of the clip there is no pose_error
                continue
            numbers = found["policy"][what], unit, PEER, found[PEER][what]
            higher = what not in LOWER_IS_BETTER
            rows.append(common.row(f"{name}, {steps:,} steps: {what}", *numbers, higher_is_better=higher))
    common.write(rows, options.json)


if __name__ == "__main__":
    common.run(main)
