"""What a run leaves to look at: learning curves, the comparison video, and one page with everything.

Axes: T ticks, S side of a panel.
"""

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from nil_jax.config import Config, differences, flatten, load_config
from nil_jax.metrics import read_metrics
from nil_jax.reference import Reference, write_video
from nil_jax.reference.prepare import resized
from nil_jax.reference.preview import labelled
from nil_jax.rollout import ImitationEnv

PANEL = 320  # px, of a run's comparison video
REFERENCE_COLOR, AGENT_COLOR = (214, 69, 65), (52, 100, 200)
CURVES = (
    ("episode_return", "return of finished episodes"),
    ("evaluation/return", "evaluation: return"),
    ("reward/mask", "mask IoU"),
    ("forward_velocity", "forward velocity [m/s]"),
    ("learner/critic_loss", "critic loss"),
    ("learner/entropy", "policy entropy [nat]"),
)


def curves(rows: Sequence[Mapping[str, float | None]], names: Sequence[tuple[str, str]] = CURVES) -> bytes | None:
    """A PNG with one panel for each curve (name, title) that the run has, over control steps; None if it has none."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    present = [(name, title) for name, title in names if any(row.get(name) is not None for row in rows)]
    if not present:
        return None
    columns = min(3, len(present))
    rows_of_panels = -(-len(present) // columns)
    width, height = 4.2 * columns, 3 * rows_of_panels
    figure = Figure(figsize=(width, height))
    # Margins in inches; an automatic layout would draw everything twice.
    figure.subplots_adjust(0.6 / width, 0.5 / height, 1 - 0.15 / width, 1 - 0.35 / height, wspace=0.25, hspace=0.45)
    FigureCanvasAgg(figure)
    for i, (name, title) in enumerate(present):
        axes = figure.add_subplot(rows_of_panels, columns, i + 1)
        points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        axes.plot(*zip(*points, strict=True), marker="o" if len(points) < 30 else None, markersize=3, linewidth=1.2)
        axes.set_title(title, fontsize=10, parse_math=False)
        axes.set_xlabel("control steps", fontsize=8)
        axes.grid(alpha=0.3)
        axes.locator_params(axis="x", nbins=5)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def comparison_frames(
    reference: Reference, pictures: UInt8[np.ndarray, "T S S 3"], first: int = 0
) -> UInt8[np.ndarray, "T h w 3"]:
    """Reference, from its frame `first`, beside agent beside the overlay of their silhouettes.

    Red is the reference's alone, blue the agent's alone.
    """
    frames, titles = [], ("reference", "agent", "overlay")
    for t, agent in enumerate(pictures):
        shown, side = (first + t) % len(reference.frames), len(agent)
        clip, ref_mask = resized(reference.frames[shown], side), resized(reference.masks[shown], side)
        agent_mask = (agent < 255).any(axis=-1)
        overlay = np.full((side, side, 3), 255, np.uint8)
        overlay[ref_mask & agent_mask] = (150, 150, 150)
        overlay[ref_mask & ~agent_mask] = REFERENCE_COLOR
        overlay[agent_mask & ~ref_mask] = AGENT_COLOR
        panels = zip((clip, agent, overlay), titles, strict=True)
        frames.append(np.concatenate([labelled(panel, title) for panel, title in panels], axis=1))
    return np.stack(frames)


def write_comparison(path: Path, env: ImitationEnv, pictures: UInt8[np.ndarray, "T S S 3"]) -> None:
    """The comparison video, at the reference's rate; it ends where the agent falls."""
    first = env.first_pose()[2]
    write_video(path, comparison_frames(env.reference, pictures, first), env.reference.fps)


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 62em; padding: 0 1em; color: #222 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums } th { text-align: left; font-weight: 600 }
td, th { padding: .15em .9em .15em 0; border-bottom: 1px solid #ddd } td { text-align: right }
td:first-child { text-align: left } img, video { max-width: 100% } .set { columns: 3 18em; font-size: 13px }
"""


def write_report(folder: Path) -> None:
    """Writes `report.html` from the other files of a finished run: one page that needs no other file and no network."""
    about = json.loads((folder / "run.json").read_text())
    evaluation = json.loads((folder / "evaluation.json").read_text())
    config, rows = load_config(folder / "config.json"), read_metrics(folder)
    drawn = folder / "curves.png"
    terms = sorted({name for row in rows for name in row if name.startswith("reward/")})
    changed = {name: new for name, (_, new) in differences(Config(), config).items()}
    robot, steps = about.get("robot", "an environment of one's own"), f"{rows[-1]['step']:,}" if rows else "0"
    body = [
        f"<h1>{_text(folder.name)}</h1>",
        f"<p>{_text(robot)}, {steps} control steps on {_text(about['device'])}</p>",
        _video(folder / "comparison.mp4"),
        "<h2>Evaluation</h2>",
        _evaluation(evaluation),
        "<p>One episode in each environment, beside the controls; units and meanings are in docs/evaluation.md.</p>",
        "<h2>Curves</h2>",
        _picture(drawn.read_bytes() if drawn.is_file() else None),
        "<h2>Terms of the reward, unweighted</h2>",
        _picture(curves(rows, [(name, name.removeprefix("reward/")) for name in terms])),
        "<h2>Settings that are not the defaults</h2>",
        _listed(changed) if changed else "<p>none</p>",
        f"<details><summary>All settings</summary>{_listed(flatten(config))}</details>",
        "<h2>Versions</h2>",
        _listed(about["versions"]),
    ]
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{_text(folder.name)}</title>'
    page += f"<style>{STYLE}</style><body>{''.join(body)}</body></html>\n"
    (folder / "report.html").write_text(page, encoding="utf-8", errors="backslashreplace")  # names of any bytes


def _text(value: Any) -> str:
    return html.escape(str(value))


def _video(path: Path) -> str:
    if not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<video controls autoplay loop muted src="data:video/mp4;base64,{data}"></video>'


def _picture(png: bytes | None) -> str:
    return "" if png is None else f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _evaluation(evaluation: Mapping[str, Mapping[str, float]]) -> str:
    head = "".join(f"<th>{_text(name)}</th>" for name in evaluation)
    metrics = dict.fromkeys(metric for row in evaluation.values() for metric in row)
    lines = [
        f"<tr><td>{_text(metric)}</td>" + "".join(f"<td>{row.get(metric, 0):.3f}</td>" for row in evaluation.values())
        for metric in metrics
    ]
    return f"<table><tr><th></th>{head}</tr>{'</tr>'.join(lines)}</tr></table>"


def _listed(values: Mapping[str, Any]) -> str:
    return '<div class="set">' + "".join(f"{_text(n)} = {_text(v)}<br>" for n, v in values.items()) + "</div>"
