"""The figures of the suite `validation`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.evaluation.figure import BLUE, DPI, GREEN, GREY, INCHES, ORANGE, label, new_figure
from pipeline.evaluation.metrics import Measured, Metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ALL = "all sources"
MOST_SOURCES = 30
"""Bars that a figure shows; the Pile has 22 sources."""


def write_plots(folder: Path, metrics: Metrics) -> list[Path]:
    """Write depth.png, loss_by_depth.png and loss_by_source.png into `folder`; returns their paths."""
    figures = {
        "depth.png": _depth(metrics),
        "loss_by_depth.png": _loss_by_depth(metrics),
        "loss_by_source.png": _loss_by_source(metrics),
    }
    paths = []
    for name, figure in figures.items():
        paths.append(folder / name)
        figure.savefig(folder / name, dpi=DPI)
    return paths


def _figure(metrics: Metrics, title: str, inches: tuple[float, float] = INCHES) -> tuple[Figure, Axes]:
    identity, overall = metrics.identity, metrics.overall
    told = (
        f"{identity.suite} set, step {identity.step:,}, {overall.tokens:,} tokens; "
        f"loss {overall.loss:.3f} nats a token, mean depth {overall.mean_depth:.2f} of {metrics.max_passes} passes"
    )
    return new_figure(title, told, inches)


def _depth(metrics: Metrics) -> Figure:
    figure, axes = _figure(metrics, "How deep the tokens go")
    overall = metrics.overall
    depths = [entry.depth for entry in overall.by_depth]
    exact = [100 * entry.tokens / overall.tokens for entry in overall.by_depth]
    halted = [100 * share for share in overall.halted_share]
    bars = [axes.bar([d - 0.2 for d in depths], exact, width=0.38, color=BLUE, label="tokens of exactly this depth")]
    if halted:
        label = "tokens halted by the end of this pass"
        places = [d + 0.2 for d in depths[:-1]]
        bars.append(axes.bar(places, halted, width=0.38, color=ORANGE, hatch="//", edgecolor="white", label=label))
    for group in bars:
        axes.bar_label(group, fmt="%.1f %%", fontsize=8.5, padding=2)
    axes.set_xlabel("depth (passes)")
    axes.set_ylabel("share of the tokens (%)")
    axes.set_xticks(depths)
    axes.set_xlim(0.4, metrics.max_passes + 0.6)
    axes.set_ylim(0, 118)
    axes.set_yticks(range(0, 101, 20))
    axes.legend(loc="upper left", frameon=False, fontsize=9, ncols=2)
    return figure


def _loss_by_depth(metrics: Metrics) -> Figure:
    figure, axes = _figure(metrics, "Loss of the tokens by their depth")
    overall = metrics.overall
    depths = [entry.depth for entry in overall.by_depth]
    shares = [100 * entry.tokens / overall.tokens for entry in overall.by_depth]
    density = axes.twinx()
    density.bar(depths, shares, width=0.6, color=GREY, alpha=0.35, label="share of the tokens (right)")
    density.set_ylabel("share of the tokens (%)", color="#555555")
    density.set_ylim(0, 100)
    density.spines["top"].set_visible(False)
    # The line stands before the bars of the other axes.
    axes.set_zorder(density.get_zorder() + 1)
    axes.patch.set_visible(False)
    seen = [(entry.depth, entry.loss) for entry in overall.by_depth if entry.loss is not None]
    losses = [loss for _, loss in seen]
    axes.axhline(overall.loss, color=ORANGE, linestyle="--", label="mean loss of all tokens (left)")
    axes.plot([depth for depth, _ in seen], losses, color=BLUE, marker="o", markersize=7, label="mean loss (left)")
    white = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
    for depth, loss in seen:
        above = {"xytext": (0, 11), "textcoords": "offset points", "ha": "center"}
        axes.annotate(f"{loss:.3f}", (depth, loss), fontsize=8.5, bbox=white, **above)
    axes.set_xlabel("depth (passes)")
    axes.set_ylabel("loss (nats a token)")
    axes.set_xticks(depths, [f"{entry.depth}\n{entry.tokens:,} tokens" for entry in overall.by_depth])
    axes.set_xlim(0.4, metrics.max_passes + 0.6)
    lowest, highest = min(losses), max(losses)
    room = 0.25 * max(highest - lowest, 0.4)
    axes.set_ylim(max(0.0, lowest - room), highest + 2.4 * room)
    handles, labels = axes.get_legend_handles_labels()
    bar_handles, bar_labels = density.get_legend_handles_labels()
    axes.legend(handles + bar_handles, labels + bar_labels, loc="upper left", frameon=False, fontsize=8)
    return figure


def _loss_by_source(metrics: Metrics) -> Figure:
    ranked = sorted(metrics.sources.items(), key=lambda item: item[1].loss)
    shown: list[tuple[str, Measured]] = [*ranked[-MOST_SOURCES:], (ALL, metrics.overall)]
    height = 1.4 + 0.34 * len(shown)
    hidden = len(ranked) - len(shown) + 1
    title = f"Loss by source (the {MOST_SOURCES} highest of {len(ranked)})" if hidden else "Loss by source"
    figure, axes = _figure(metrics, title, (INCHES[0], height))
    names = [label(name) for name, _ in shown]
    losses = [measured.loss for _, measured in shown]
    places = range(len(shown))  # two names may look the same once they are short
    bars = axes.barh(places, losses, height=0.65, color=[BLUE] * (len(shown) - 1) + [GREEN])
    told = [
        f"{measured.loss:.3f}   perplexity {measured.perplexity:,.2f}   {measured.bits_per_byte:.3f} bits a byte"
        for _, measured in shown
    ]
    axes.set_yticks(places, names)
    axes.bar_label(bars, told, fontsize=8, padding=4)
    axes.set_xlim(0, 1.75 * max(losses))
    axes.margins(y=0.02)
    axes.set_xlabel("loss (nats a token)")
    return figure
