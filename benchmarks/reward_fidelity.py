"""How well rewards rank motions: similarities of pictures against the true distance of poses.

    python benchmarks/reward_fidelity.py [--quick | --full] [--json FILE] [--mocap FOLDER]
                                         [--encoders NAME[,POOLING] ...] [--references NAME ...] [--only WORD ...]

References are real gaits of H1, A1 and Talos (../shared/mocap), seen by a follow camera. An agent's clip is a window of
8 ticks at 25 Hz, compared with the reference's window that ends at the same tick. In the domain "same" our renderer
draws the reference too; in "other" it is MuJoCo's, with other colours, other light and a slightly wrong camera (scale
3 %, offset 1.5 % of the image, elevation 2 degrees). It needs OpenGL without a screen (`looks.py` says how).

- Spearman: of the reward with the negative true distance (`motions.Body.distance`), over all clips of the graded
  families or of one. Several references: the mean of their figures. Intervals: 95 %, bootstrap over clips.
- AUC: that a right clip is worth more than one of a constant family, the worst of them. Right: a graded clip that is
  truly no farther than the reference's own motion 40 ms early or late.
- Basin: how far a time shift or joint error may be until the reward's slope falls below a tenth of its steepest.
- Spread: mean of the right clips minus mean of the constant families, over the standard deviation of all clips.
- Worse: families where the Spearman is significantly below that of a published term (paired bootstrap).
"""

import time
from pathlib import Path

import common
import numpy as np
import ranking
from candidates import CANDIDATES, HARD
from features import Embedder
from motions import RECORDINGS, ROBOTS, Gait, read_gait
from rich.console import Console
from rich.table import Table
from studies import Study, study

import nil_jax
from nil_jax.rewards import load_encoder

QUICK = ("h1 walk",)
STRIDES = {"quick": (1,), "full": (1, 2, 5)}  # ticks between two frames of an encoder's clip


def correlations(study: Study, domain: str, candidate: str) -> dict[str, tuple[float, np.ndarray]]:
    """Spearman of all graded clips ("pooled") and of each family, with bootstrap values [B]."""
    rewards, found = study.rewards[domain][candidate], {}
    for seed, (family, rows) in enumerate({"pooled": study.pooled, **study.graded}.items()):
        again = rows[ranking.resampled(len(rows), seed)]
        boot = ranking.spearman(rewards[again], study.distance[again])
        found[family] = float(ranking.spearman(rewards[rows], study.distance[rows])), boot
    return found


def separations(study: Study, domain: str, candidate: str) -> dict[str, float]:
    """AUC of right clips against each constant family, and the spread."""
    rewards = study.rewards[domain][candidate]
    right = rewards[study.pooled[study.right[study.pooled]]]
    found = {f"AUC {name}": ranking.auc(right, rewards[rows]) for name, rows in study.constant.items()}
    wrong = np.concatenate([rewards[rows] for rows in study.constant.values()])
    everything = np.concatenate([rewards[study.pooled], wrong])
    return found | {"spread": float((right.mean() - wrong.mean()) / max(everything.std(), 1e-12))}


def basins(study: Study, domain: str, candidate: str) -> dict[str, float]:
    """Width of the basin of each swept deviation."""
    found = {}
    for name, rows in study.sweeps.items():
        size = np.round(np.abs(study.strength[rows]), 6)
        places = np.unique(size)
        mean = np.array([study.rewards[domain][candidate][rows[size == place]].mean() for place in places])
        found[f"basin {name}"] = ranking.basin(places, mean)
    return found


def summary(studies: list[Study], domain: str, published: list[str]) -> dict[str, dict]:
    """For each candidate its figures in one domain: means over the references, bootstrap values, lost families."""
    found = {}
    for candidate in studies[0].rewards[domain]:
        rows = [correlations(study, domain, candidate) for study in studies]
        names = list(dict.fromkeys(name for row in rows for name in row))
        value = {name: float(np.mean([row[name][0] for row in rows if name in row])) for name in names}
        boot = {name: np.mean([row[name][1] for row in rows if name in row], axis=0) for name in names}
        others = mean_of([separations(study, domain, candidate) for study in studies])
        found[candidate] = {
            "spearman": value,
            "boot": boot,
            "each": {study.name: row["pooled"][0] for study, row in zip(studies, rows, strict=True)},
            "basin": mean_of([basins(study, domain, candidate) for study in studies]),
            "spread": others.pop("spread"),
            "auc": others,
        }
    for entry in found.values():
        entry["worse"] = [
            name
            for name in entry["spearman"]
            if name != "pooled"
            and any(ranking.interval(entry["boot"][name] - found[p]["boot"][name])[1] < 0 for p in published)
        ]
    return found


def mean_of(rows: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each name over the rows that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}


def table(found: dict[str, dict], domain: str, cost: dict[str, float], oracles: set[str]) -> Table:
    """The figures of one domain, best first."""
    columns = ["candidate", "Spearman", "95 %", "worst family", "worst AUC", "basin s", "hip rad", "knee rad", "spread"]
    printed = Table(*columns, "worse", "us a clip", title=f"reference drawn by: {domain}")
    for name, entry in sorted(found.items(), key=lambda item: -item[1]["spearman"]["pooled"]):
        low, high = ranking.interval(entry["boot"]["pooled"])
        worst = min(entry["spearman"], key=entry["spearman"].get)
        weak = min(entry["auc"], key=entry["auc"].get)
        printed.add_row(
            name + (" *" if name in oracles else ""),
            f"{entry['spearman']['pooled']:.3f}",
            f"{low:.2f}..{high:.2f}",
            f"{entry['spearman'][worst]:.2f} {worst}",
            f"{entry['auc'][weak]:.3f} {weak.removeprefix('AUC ')}",
            *(f"{entry['basin'][f'basin {part}']:.2f}" for part in ("time shift", "hip error", "knee error")),
            f"{entry['spread']:.2f}",
            str(len(entry["worse"])),
            f"{cost[name]:.0f}",
        )
    return printed


def family_table(found: dict[str, dict], domain: str) -> Table:
    """Spearman of each family and AUC against each constant one."""
    first = next(iter(found.values()))
    names = [*first["spearman"], *first["auc"], *first["each"]]
    printed = Table(title=f"Spearman of families and references, AUC of constant ones; reference drawn by: {domain}")
    printed.add_column("candidate", no_wrap=True)
    for name in names:
        printed.add_column(name)
    for name, entry in sorted(found.items(), key=lambda item: -item[1]["spearman"]["pooled"]):
        values = {**entry["spearman"], **entry["auc"], **entry["each"]}
        printed.add_row(name, *(f"{values[key]:.2f}" for key in names))
    return printed


def rows_of(found: dict[str, dict], domain: str, cost: dict[str, float], studies: list[Study]) -> list[dict]:
    """The figures of one domain in the common form, best first; the peer is the published mask term."""
    rows, references = [], ", ".join(study.name for study in studies)
    peer = {what: value for what, value, _ in figures(found[HARD], cost[HARD])}
    for name, entry in sorted(found.items(), key=lambda item: -item[1]["spearman"]["pooled"]):
        for what, value, unit in figures(entry, cost[name]):
            if domain == "same" and what != "Spearman":
                continue
            other = (None, None) if name == HARD else (HARD, peer[what])
            label = f"{name}: {what} ({domain} domain; {references})"
            rows.append(common.row(label, value, unit, *other, higher_is_better=what not in LOWER_IS_BETTER))
    return rows


LOWER_IS_BETTER = ("cost of a clip", "families worse than published")


def figures(entry: dict, cost: float) -> list[tuple[str, float, str]]:
    """Name, value and unit of the figures of one candidate."""
    return [
        ("Spearman", entry["spearman"]["pooled"], ""),
        ("Spearman, low end", ranking.interval(entry["boot"]["pooled"])[0], ""),
        ("Spearman of the worst family", min(entry["spearman"].values()), ""),
        ("AUC of the worst family", min(entry["auc"].values()), ""),
        *((what, value, "s" if "shift" in what else "rad") for what, value in entry["basin"].items()),
        ("spread", entry["spread"], "std"),
        ("families worse than published", float(len(entry["worse"])), ""),
        ("cost of a clip", cost, "us"),
    ]


def agreements(studies: list[Study], domain: str) -> list[dict]:
    """Rank correlations of the rewards of students with those of calibrated teachers, over all graded clips."""
    rows, rewards = [], studies[0].rewards[domain]
    pairs = [(a, b) for a in rewards if a.endswith(": L2") for b in rewards if b.endswith(": cosine, centred")]
    for student, teacher in pairs:
        each = [
            ranking.spearman(
                study.rewards[domain][student][study.pooled], -study.rewards[domain][teacher][study.pooled]
            )
            for study in studies
        ]
        label = f"{student}: Spearman with {teacher} ({domain} domain; {', '.join(study.name for study in studies)})"
        rows.append(common.row(label, float(np.mean(each)), ""))
    return rows


def read_gaits(mocap: Path) -> dict[str, Gait]:
    """All references."""
    envs = {robot: nil_jax.envs.make(robot) for robot in ROBOTS.values()}
    return {name: read_gait(RECORDINGS[name], mocap, envs[robot]) for name, robot in ROBOTS.items()}


def main() -> None:
    """Prints the tables."""
    shared = Path(__file__).resolve().parents[2] / "shared"
    command = common.parser(__doc__.splitlines()[0])
    command.add_argument("--mocap", type=Path, default=shared / "mocap", metavar="FOLDER")
    command.add_argument("--encoders", nargs="*", default=["student"], metavar="NAME[,POOLING]", help="of load_encoder")
    command.add_argument("--references", nargs="+", choices=ROBOTS, help="the gaits (default: one, or with --full all)")
    command.add_argument("--only", nargs="+", metavar="WORD", help="candidates whose names hold one of these")
    options = command.parse_args()
    size = "full" if options.full else "quick"
    gaits = read_gaits(options.mocap)
    names = options.references or (gaits if options.full else QUICK)
    words = options.only or [""]
    chosen = {n: c for n, c in CANDIDATES.items() if n == HARD or any(word in n for word in words)}
    encoders = [Embedder(name, load_encoder(*name.split(",")), STRIDES[size]) for name in options.encoders]
    started = time.perf_counter()
    studies = []
    for name in names:
        studies.append(study(name, gaits, size, chosen, encoders))
        print(f"{name}: {time.perf_counter() - started:.0f} s")
    rows, console = [], Console(width=max(Console().width, 200))
    oracles = {name for name, candidate in CANDIDATES.items() if candidate.oracle}
    for domain in studies[0].rewards:
        published = [name for name in studies[0].rewards[domain] if name.endswith("(published)")]
        found = summary(studies, domain, published)
        console.print(table(found, domain, studies[0].cost, oracles), family_table(found, domain))
        rows += rows_of(found, domain, studies[0].cost, studies) + agreements(studies, domain)
    common.write(rows, options.json)


if __name__ == "__main__":
    common.run(main)
