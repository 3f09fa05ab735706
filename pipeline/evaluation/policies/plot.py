"""The comparison of policies as a figure and as a table that opens in a spreadsheet."""

from __future__ import annotations

import csv
import io
import itertools
from pathlib import Path

from pipeline.durable import write_text
from pipeline.evaluation.figure import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, YELLOW, new_figure
from pipeline.evaluation.policies.found import Policies, PolicyPoint
from pipeline.evaluation.policies.measure import LEARNED

PLOT_NAME, TABLE_NAME = "policies.png", "policies.csv"
_INCHES = (8.0, 5.2)
_STYLES = [(ORANGE, "s"), (GREEN, "^"), (PURPLE, "v"), (SKY, "D"), (YELLOW, "P"), (GREY, "X"), ("#000000", "*")]
_LINES = ["-", "--", ":"]
"""Beyond as many policies as there are colours, the lines differ."""


def write_plot(folder: Path, found: Policies) -> None:
    """policies.png: loss over mean depth, a line for each policy; the band is where the learned one's 95 % lie."""
    title = "Loss of policies at equal compute"
    told = (
        f"step {found.identity.step:,}, {found.tokens:,} validation tokens of {found.documents:,} documents; "
        f"dashed: what the network's own tau of {found.halt_threshold:g} spends"
    )
    figure, axes = new_figure(title, told, _INCHES)
    lines: dict[str, list[PolicyPoint]] = {}
    for point in found.points:
        name = "every token at one depth" if point.policy.startswith("truncated") else point.policy
        lines.setdefault(name, []).append(point)
    styles = ((*style, line) for line in itertools.cycle(_LINES) for style in _STYLES)
    for name, points in lines.items():
        points = sorted(points, key=lambda point: point.mean_depth)
        depths, losses = [point.mean_depth for point in points], [point.loss for point in points]
        if name == LEARNED:
            lowest, highest = [point.interval[0] for point in points], [point.interval[1] for point in points]
            axes.fill_between(depths, lowest, highest, color=BLUE, alpha=0.15)
            axes.plot(depths, losses, color=BLUE, marker="o", linewidth=2.2, label="learned (tau moves)", zorder=5)
            continue
        color, mark, line = next(styles)
        axes.plot(depths, losses, color=color, marker=mark, linestyle=line, linewidth=1.1, markersize=5, label=name)
    own = next(point for point in found.points if point.at_equal_compute)
    axes.axvline(own.mean_depth, color=BLUE, linestyle="--", linewidth=0.9)
    axes.set_xlabel(f"mean depth (passes a token, of {found.max_passes})")
    axes.set_ylabel("loss (nats a token)")
    axes.legend(loc="upper right", frameon=False, fontsize=8)
    figure.savefig(folder / PLOT_NAME, dpi=150)


def write_table(folder: Path, found: Policies) -> None:
    """policies.csv: a line for each point."""
    text = io.StringIO()
    columns = list(PolicyPoint.model_fields)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for point in found.points:
        values = [point.model_dump(mode="json")[name] for name in columns]
        writer.writerow([" ".join(map(str, value)) if isinstance(value, list) else value for value in values])
    write_text(folder / TABLE_NAME, text.getvalue())
