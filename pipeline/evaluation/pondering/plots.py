"""Figures of the suite `depth`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.evaluation.depth_colours import tint
from pipeline.evaluation.figure import BLUE, DPI, GREY, INCHES, ORANGE, label, new_figure
from pipeline.evaluation.pondering.found import Pondering
from pipeline.evaluation.pondering.groups import Group

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_BARS = 30


def write_plots(folder: Path, found: Pondering) -> None:
    """depth_by_source.png, depth_by_position.png, depth_by_frequency.png, depth_by_kind.png, gates.png."""
    figures = {
        "depth_by_source.png": _bars(found, "Depth by source", found.by_source),
        "depth_by_position.png": _line(found),
        "depth_by_frequency.png": _bars(found, "Depth by how frequent the token is (rank)", found.by_frequency),
        "depth_by_kind.png": _bars(found, "Depth by kind of token", found.by_kind),
    }
    if found.gates:
        figures["gates.png"] = _gates(found)
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=DPI)


def _told(found: Pondering) -> str:
    return (
        f"step {found.identity.step:,}, {found.tokens:,} validation tokens; mean depth {found.mean_depth:.3f} of "
        f"{found.max_passes} passes"
    )


def _bars(found: Pondering, title: str, groups: list[Group]) -> Figure:
    """Shares of each depth, a bar a group, mean depth and loss beside it."""
    shown = groups[:_MOST_BARS]
    if len(groups) > len(shown):
        title += f" (the first {len(shown)} of {len(groups)})"
    figure, axes = new_figure(title, _told(found), (INCHES[0] + 1, 1.7 + 0.34 * len(shown)))
    names = [label(group.name) for group in shown]
    places = range(len(shown))  # two names may look the same once they are short
    axes.set_yticks(places, names)
    left = [0.0] * len(shown)
    for depth in range(1, found.max_passes + 1):
        shares = [100 * group.by_depth[depth - 1] / group.tokens for group in shown]
        color = tint(depth, found.max_passes)
        axes.barh(places, shares, left=left, height=0.7, color=color, edgecolor="white", label=f"depth {depth}")
        left = [before + share for before, share in zip(left, shares, strict=True)]
    for number, group in enumerate(shown):
        told = f"{group.mean_depth:.3f} passes, {group.loss:.3f} nats, {group.tokens:,} tokens"
        axes.text(101, number, told, va="center", fontsize=8)
    axes.set_xlim(0, 165)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("share of the group's tokens (%)")
    axes.invert_yaxis()
    figure.legend(loc="outside lower left", frameon=False, fontsize=8, ncols=found.max_passes)
    return figure


def _line(found: Pondering) -> Figure:
    figure, axes = new_figure("Depth and loss by position in the row", _told(found))
    groups = found.by_position
    places = range(len(groups))
    depths = [group.mean_depth for group in groups]
    errors = [1.96 * (group.standard_error or 0.0) for group in groups]
    axes.errorbar(places, depths, yerr=errors, color=BLUE, marker="o", capsize=3, label="mean depth, 95 % (left)")
    axes.set_ylabel("mean depth (passes)", color=BLUE)
    axes.set_xticks(places, [group.name for group in groups], rotation=45, ha="right", fontsize=8)
    axes.set_xlabel("position (tokens from the start of the row)")
    losses = axes.twinx()
    losses.plot(
        places, [group.loss for group in groups], color=ORANGE, marker="s", linestyle="--", label="loss (right)"
    )
    losses.set_ylabel("loss (nats a token)", color=ORANGE)
    losses.spines["top"].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    more_handles, more_labels = losses.get_legend_handles_labels()
    axes.legend(handles + more_handles, labels + more_labels, loc="upper right", frameon=False, fontsize=8)
    return figure


def _gates(found: Pondering) -> Figure:
    figure, axes = new_figure("Gate values after each pass", _told(found))
    styles = [(BLUE, "-"), (ORANGE, "--"), (GREY, "-."), ("#000000", ":")]
    for number, gate in enumerate(found.gates):
        color, line = styles[number % len(styles)]
        shares = [100 * count / max(1, gate.tokens) for count in gate.counts]
        label = f"after pass {gate.after_pass}: {gate.tokens:,} active tokens, mean {gate.mean:.3f}"
        places = [*range(len(shares)), len(shares)]
        axes.step(places, [*shares, shares[-1]], where="post", color=color, linestyle=line, label=label)
    edges = found.gates[0].edges
    axes.set_xticks(range(len(edges)), [f"{edge:g}" for edge in edges], fontsize=8)
    axes.set_xlabel("gate value s (bins of unequal width)")
    axes.set_ylabel("share of the active tokens (%)")
    axes.legend(loc="best", frameon=False, fontsize=8)
    return figure
