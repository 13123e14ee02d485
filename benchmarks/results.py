"""Writes RESULTS.md from the JSON files of the other scripts.

python benchmarks/results.py build/bench/*.json > benchmarks/RESULTS.md
"""

import json
import sys
from pathlib import Path

HEADER = """# Results

Written by `results.py` from the rows that the scripts of this folder print; not by hand. A ratio above 1 means better
than the peer, which was measured in the same run. Best of a few repeats each.
"""


def section(path: Path) -> str:
    """The rows of one script as a table, with the machine and the versions they were measured on."""
    rows = json.loads(path.read_text())
    machine = ", ".join(dict.fromkeys(row["device"] for row in rows))
    versions = ", ".join(f"{name} {version}" for name, version in rows[0]["versions"].items())
    script, _, part = path.stem.partition("-")
    lines = [f"\n## {script}.py{f' ({part})' if part else ''}\n", f"{machine}; {versions}\n"]
    lines += ["| what | value | unit | peer | peer value | ratio |", "|---|---|---|---|---|---|"]
    for row in rows:
        value, peer, ratio = ("" if row[k] is None else f"{row[k]:.4g}" for k in ("value", "peer_value", "ratio"))
        lines.append(f"| {row['what']} | {value} | {row['unit']} | {row['peer'] or ''} | {peer} | {ratio} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(HEADER + "\n".join(section(Path(name)) for name in sys.argv[1:]))
