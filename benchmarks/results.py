"""Writes RESULTS.md from the JSON files of the other scripts; sections of scripts that are not named stay as they are.

python benchmarks/results.py build/bench/*.json
"""

import ast
import json
import re
import sys
from itertools import groupby
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")
HEADER = """# Results

Written by `results.py` from the rows that the scripts of this folder print; not by hand. A ratio above 1 means better
than the peer, which was measured in the same run. Times and speeds are the best of a few repeats, or
medians; what was learned is that of one run, or the mean of as many as the row says.
"""


def section(path: Path) -> tuple[str, str]:
    """Title and table of the rows of one script, with the machine and the versions they were measured on."""
    rows = json.loads(path.read_text())
    machine = ", ".join(dict.fromkeys(row["device"] for row in rows))
    versions = ", ".join(f"{name} {version}" for name, version in rows[0]["versions"].items())
    script, _, part = path.stem.partition("-")
    lines = [f"{machine}; {versions}\n"]
    lines += ["| what | value | unit | peer | peer value | ratio |", "|---|---|---|---|---|---|"]
    for row in rows:
        value, peer, ratio = ("" if row[k] is None else f"{row[k]:.4g}" for k in ("value", "peer_value", "ratio"))
        lines.append(f"| {row['what']} | {value} | {row['unit']} | {row['peer'] or ''} | {peer} | {ratio} |")
    return f"{script}.py{f' ({part})' if part else ''}", "\n".join(lines)


def sections(text: str) -> dict[str, str]:
    """Tables by title, of what was written before."""
    parts = re.split(r"^## (.*)\n", text, flags=re.MULTILINE)
    return {title: table.strip() for title, table in zip(parts[1::2], parts[2::2], strict=True)}


def contents(titles: list[str]) -> str:
    """Links to the tables, one line a script, with what it says of itself."""
    lines = []
    for script, parts in groupby(titles, lambda title: title.partition(" ")[0]):
        about = ast.get_docstring(ast.parse(RESULTS.with_name(script).read_text())).partition("\n")[0]
        links = (f"[{part.partition(' ')[2].strip('()') or 'table'}](#{_anchor(part)})" for part in parts)
        lines.append(f"- `{script}`: {about} {', '.join(links)}\n")
    return "".join(lines)


def _anchor(title: str) -> str:
    """As GitHub makes them of headings."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


if __name__ == "__main__":
    known = sections(RESULTS.read_text() if RESULTS.is_file() else "")
    known |= dict(section(Path(name)) for name in sys.argv[1:])
    tables = "".join(f"\n## {title}\n\n{known[title]}\n" for title in sorted(known))
    RESULTS.write_text(f"{HEADER}\n{contents(sorted(known))}{tables}")
