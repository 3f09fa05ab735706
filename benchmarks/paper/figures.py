"""The paper's figures, drawn from a study: means over seeds, with every seed or the spread to be seen."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.paper.members import FRACTIONS, FROM_STOCK, LAMBDAS, REFERENCE, SHARED, TARGETS
from benchmarks.paper.results import Result, Results
from pipeline.evaluation.figure import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, YELLOW, new_figure

COLOURS = [BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW, GREY, "#000000"]
MARKS = ["o", "s", "^", "v", "D", "P", "X", "*"]
LEAST_SHARE = 0.001
"""Of the tokens: a depth that fewer have is left out of figure 5."""


def write_figures(results: Results, folder: Path) -> dict[str, str]:
    """Draw every figure whose members are there; titles by file name, in the order of the report."""
    drawn = {}
    for name, title, members, draw in (
        ("figure-3.png", "Loss and depth by lambda and k (the paper's figure 3)", _varied(), _lambda_and_k),
        ("figure-4.png", "Tokens still active, by pass (figure 4)", [REFERENCE], _passes),
        ("figure-5.png", "Loss by depth (figure 5)", [REFERENCE], _loss_by_depth),
        ("figure-6.png", "Policies at equal compute (figure 6)", [REFERENCE], _policies),
        ("collapse.png", "What gates do without the method's parts", [REFERENCE, SHARED, "no-bottom-k"], _collapse),
        ("targets.png", "Mean depth under a target", [f"target-{depth:g}" for depth in TARGETS], _targets),
    ):
        if all(member in results for member in members):
            draw(results, folder / name, title)
            drawn[name] = title
    return drawn


def _varied() -> list[str]:
    return [*(_member("lambda", value) for value in LAMBDAS), *(_member("k", value) for value in FRACTIONS)]


def _member(what: str, value: float) -> str:
    shared = LAMBDAS[1] if what == "lambda" else FRACTIONS[1]
    return REFERENCE if value == shared else f"{what}-{value:g}"


def _told(results: Results) -> str:
    tokens = results.of(REFERENCE)[0].found.tokens if REFERENCE in results else 0
    seeds = len(results.seeds)
    return f"{seeds} seed{'s' if seeds > 1 else ''}" + (f", {tokens:,} validation tokens" if tokens else "")


def _lambda_and_k(results: Results, path: Path, title: str) -> None:
    figure, axes = new_figure(title, f"{_told(results)}; bars: standard deviation over seeds", (8.0, 4.5))
    axes.remove()
    left, right = figure.subplots(1, 2)
    for panel, read, unit in (
        (left, lambda each: each.loss, "loss (nats a token)"),
        (right, lambda each: each.mean_depth, "mean depth (passes a token)"),
    ):
        for number, (what, values) in enumerate((("lambda", LAMBDAS), ("k", FRACTIONS))):
            found = [results.each(_member(what, value), read) for value in values]
            label = "lambda, with k 0.1" if what == "lambda" else "k, with lambda 0.1"
            _with_bars(panel, list(values), found, COLOURS[number], MARKS[number], label)
        panel.set_xlabel("lambda, or k")
        panel.set_ylabel(unit)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def _passes(results: Results, path: Path, title: str) -> None:
    figure, axes = new_figure(title, f"{_told(results)}; a line a seed")
    for number, result in enumerate(results.of(REFERENCE)):
        total = sum(result.depths)
        shares = [sum(result.depths[place:]) / total for place in range(len(result.depths))]
        axes.plot(
            range(1, len(shares) + 1),
            shares,
            color=COLOURS[number % len(COLOURS)],
            marker=MARKS[number % len(MARKS)],
            label=f"seed {result.training.seed}, mean depth {result.mean_depth:.3f}",
        )
    axes.set_xticks(range(1, len(results.of(REFERENCE)[0].depths) + 1))
    axes.set_xlabel("pass")
    axes.set_ylabel("share of the tokens that take part")
    axes.set_ylim(0, 1.03)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def _loss_by_depth(results: Results, path: Path, title: str) -> None:
    told = f"{_told(results)}; area of a mark: share of the tokens; dotted: all tokens"
    members = [member for member in (REFERENCE, FROM_STOCK) if member in results]
    figure, axes = new_figure(title, told, (4.5 * len(members), 4.5))
    axes.remove()
    for panel, member in zip(figure.subplots(1, len(members), squeeze=False)[0], members, strict=True):
        for number, result in enumerate(results.of(member)):
            _by_depth(panel, result, number)
        panel.set_title(results.of(member)[0].training.member.title, fontsize=9)
        panel.set_xticks(range(1, len(results.of(member)[0].depths) + 1))
        panel.set_xlabel("depth (passes of a token)")
        panel.set_ylabel("loss (nats a token)")
        panel.spines[["top", "right"]].set_visible(False)
        legend = panel.legend(frameon=False, fontsize=8)
        for handle in legend.legend_handles:
            handle.set_sizes([40])  # pyright: ignore
    figure.savefig(path, dpi=150)


def _by_depth(panel: Any, result: Result, number: int) -> None:
    """One seed's marks, beside those of the other seeds."""
    total, color = result.found.tokens, COLOURS[number % len(COLOURS)]
    shown = [each for each in result.found.by_depth if each.tokens > LEAST_SHARE * total and each.loss is not None]
    panel.scatter(
        [each.depth + 0.06 * number for each in shown],
        [each.loss for each in shown],
        s=[30 + 600 * each.tokens / total for each in shown],
        color=color,
        alpha=0.6,
        label=f"seed {result.training.seed}",
    )
    panel.axhline(result.loss, color=color, linewidth=0.8, linestyle=":")


def _policies(results: Results, path: Path, title: str) -> None:
    told = f"{_told(results)}; loss above the learned policy's at what it spends; a mark a seed, lines: means"
    figure, axes = new_figure(title, told)
    over: dict[str, list[float]] = {}
    for result in results.of(REFERENCE):
        for point in result.policies.points if result.policies else []:
            if point.at_equal_compute and point.over_learned is not None:
                over.setdefault(point.policy, []).append(point.over_learned)
    names = sorted(over, key=lambda name: statistics.fmean(over[name]))
    for place, name in enumerate(names):
        color = COLOURS[(place + 1) % len(COLOURS)]
        axes.plot(over[name], [place] * len(over[name]), linestyle="", color=color, marker=MARKS[place % len(MARKS)])
        mean = statistics.fmean(over[name])
        axes.plot([mean, mean], [place - 0.25, place + 0.25], color=color)
    axes.axvline(0, color=BLUE, linewidth=1.5)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("loss above the learned policy's (nats a token)")
    figure.savefig(path, dpi=150)


def _collapse(results: Results, path: Path, title: str) -> None:
    members = [REFERENCE, SHARED, "no-bottom-k"]
    _over_steps(results, path, title, members, "depth/mean", "mean depth of training tokens (passes)")


def _targets(results: Results, path: Path, title: str) -> None:
    members = [f"target-{depth:g}" for depth in TARGETS]
    _over_steps(results, path, title, members, "depth/mean", "mean depth of training tokens (passes)", TARGETS)


def _over_steps(
    results: Results,
    path: Path,
    title: str,
    members: list[str],
    metric: str,
    unit: str,
    aims: Sequence[float] = (),
) -> None:
    figure, axes = new_figure(title, f"{_told(results)}; a line a seed" + ("; dotted: the targets" if aims else ""))
    for number, member in enumerate(members):
        for result in results.of(member):
            lines = [line for line in result.lines if metric in line]
            label = result.training.member.title if result.training.seed == results.seeds[0] else None
            steps, values = [line["step"] for line in lines], [line[metric] for line in lines]
            axes.plot(steps, values, color=COLOURS[number], linewidth=1.1, label=label)
    for aim in aims:
        axes.axhline(aim, color=GREY, linewidth=0.8, linestyle=":")
    axes.set_xlabel("step")
    axes.set_ylabel(unit)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def _with_bars(axes: Any, places: list[float], found: list[list[float]], color: str, mark: str, label: str) -> None:
    means = [statistics.fmean(values) for values in found]
    wide = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in found]
    axes.errorbar(places, means, yerr=wide, color=color, marker=mark, capsize=3, linewidth=1.2, label=label)
