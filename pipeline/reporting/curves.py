"""Figures of a run's report: how what was found changed over the training, in steps (below) and tokens (above)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.evaluation.figure import BLUE, GREEN, GREY, INCHES, ORANGE, PURPLE, SKY, YELLOW, label, new_figure
from pipeline.reporting.judged import Judged, best_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

MOST_LINES, MOST_PANELS = 7, 9
_STYLES = [
    (BLUE, "o", "-"),
    (ORANGE, "s", "--"),
    (GREEN, "^", "-."),
    (PURPLE, "v", ":"),
    (SKY, "D", "-"),
    (YELLOW, "P", "--"),
    ("#000000", "X", "-."),
]


@dataclass(frozen=True)
class Course:
    """A run over its training."""

    run: str
    checkpoints: Sequence[Judged]
    baselines: Sequence[Judged]
    tokens_per_step: int
    max_passes: int | None
    trained: Sequence[tuple[int, float]] = ()
    """Step and cross entropy of the training itself."""


@dataclass(frozen=True)
class Curve:
    """A figure that is to be drawn: draws itself when asked."""

    file: str
    title: str
    shows: str
    draw: Callable[[], Drawing]
    wide: bool = False


def curves(course: Course) -> list[Curve]:
    """Those for which something was found."""
    found: list[Curve] = []
    if _values(course, "validation", "loss"):
        shows = "Validation loss of each checkpoint, the best one ringed"
        if course.trained:
            shows += ", over the loss of the training itself in grey"
        if course.baselines:
            shows += "; dashed lines are the baselines"
        found.append(Curve("loss.png", "Loss over training", shows + ".", lambda: _loss(course)))
    if _values(course, "validation", "mean_depth"):
        shows = "Mean passes a token on the validation sets: what the network spends as it learns to halt."
        found.append(Curve("mean_depth.png", "Mean depth over training", shows, lambda: _depth(course)))
    sources = _names(course, "validation", "source/", "/loss")
    if len(sources) > 1:
        shows = "Validation loss of each source of text"
        shows += f", the {MOST_LINES} highest of {len(sources)}." if len(sources) > MOST_LINES else "."
        found.append(
            Curve("loss_by_source.png", "Loss by source over training", shows, lambda: _by_source(course, sources))
        )
    depths = _names(course, "validation", "depth_", "/loss")
    if len(depths) > 1:
        shows = "Loss of the tokens of each depth: apart, when the network gives passes to the hard tokens."
        found.append(
            Curve("loss_by_depth.png", "Loss by depth over training", shows, lambda: _by_depth(course, depths))
        )
    for suite in sorted({suite for each in course.checkpoints for suite in each.named} - {"validation"}):
        names = _moving(course, suite)
        if not names:
            continue
        shows = f"Numbers of the suite {suite} at each checkpoint, under the names that they have in MLflow."
        title = f"{suite[:1].upper() + suite[1:]} over training"
        found.append(
            Curve(f"suite_{suite}.png", title, shows, partial(_panels, course, suite, names, title), wide=True)
        )
    return found


def _values(course: Course, suite: str, name: str) -> list[tuple[int, float]]:
    pairs = ((each.step, each.number(suite, name)) for each in course.checkpoints)
    return [(step, value) for step, value in pairs if value is not None]


def _names(course: Course, suite: str, start: str, end: str) -> list[str]:
    """The part in the middle of the names of numbers of that form."""
    found = {
        name[len(start) : -len(end)]
        for each in course.checkpoints
        for name in each.named.get(suite, {})
        if name.startswith(start) and name.endswith(end)
    }
    return sorted(name for name in found if "/" not in name)


def _axes(course: Course, title: str, unit: str, inches: tuple[float, float] = INCHES) -> tuple[Drawing, Axes]:
    told = f"run {course.run}, {len(course.checkpoints)} evaluated checkpoints"
    figure, axes = new_figure(title, told, inches)
    axes.set_ylabel(unit)
    _steps(axes, course)
    return figure, axes


def _steps(axes: Axes, course: Course) -> None:
    """Steps below, tokens above."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    each = course.tokens_per_step

    def tokens_of(step: Any) -> Any:
        return step * each

    def step_of(tokens: Any) -> Any:
        return tokens / each

    above = axes.secondary_xaxis("top", functions=(tokens_of, step_of))
    above.xaxis.set_major_locator(MaxNLocator(nbins=6))
    above.xaxis.set_major_formatter(EngFormatter(sep=""))
    above.set_xlabel("tokens trained on", fontsize=9)
    axes.grid(axis="y", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)


def _line(axes: Axes, points: Sequence[tuple[int, float]], number: int, name: str) -> None:
    own, mark, line = _STYLES[number % len(_STYLES)]
    steps, values = zip(*points, strict=True)
    axes.plot(steps, values, color=own, marker=mark, linestyle=line, markersize=5, label=label(name))


def _baselines(axes: Axes, course: Course, name: str) -> None:
    for number, baseline in enumerate(course.baselines):
        value = baseline.number("validation", name)
        if value is not None:
            colour = _STYLES[1 + number % (len(_STYLES) - 1)][0]
            dashes = (0, (6, 2 + 2 * number))
            axes.axhline(value, color=colour, linestyle=dashes, linewidth=1.3, label=label(baseline.name))


def _legend(axes: Axes) -> None:
    axes.legend(loc="best", frameon=False, fontsize=8.5)


def _loss(course: Course) -> Drawing:
    figure, axes = _axes(course, "Loss over training", "loss (nats a token)")
    if course.trained:
        steps, losses = zip(*course.trained, strict=True)
        axes.plot(steps, losses, color=GREY, linewidth=0.9, alpha=0.8, label="training batches")
    _line(axes, _values(course, "validation", "loss"), 0, "validation sets")
    best = best_of(list(course.checkpoints))
    if best is not None and best.loss is not None:
        ring = {"s": 190, "facecolors": "none", "edgecolors": ORANGE, "linewidths": 2, "zorder": 5}
        axes.scatter([best.step], [best.loss], label=f"best: {best.loss:.4f} at step {best.step:,}", **ring)
    _baselines(axes, course, "loss")
    _legend(axes)
    return figure


def _depth(course: Course) -> Drawing:
    most = f", of {course.max_passes}" if course.max_passes else ""
    figure, axes = _axes(course, "Mean depth over training", f"mean depth (passes a token{most})")
    _line(axes, _values(course, "validation", "mean_depth"), 0, "validation sets")
    _baselines(axes, course, "mean_depth")
    if course.max_passes:
        axes.set_ylim(0.9, course.max_passes + 0.15)
    _legend(axes)
    return figure


def _by_source(course: Course, sources: Sequence[str]) -> Drawing:
    figure, axes = _axes(course, "Loss by source over training", "loss (nats a token)")
    lines = {source: _values(course, "validation", f"source/{source}/loss") for source in sources}
    highest = sorted(lines, key=lambda source: -lines[source][-1][1])[:MOST_LINES]
    for number, source in enumerate(highest):
        _line(axes, lines[source], number, source)
    _legend(axes)
    return figure


def _by_depth(course: Course, depths: Sequence[str]) -> Drawing:
    figure, axes = _axes(course, "Loss by depth over training", "loss (nats a token)")
    for number, depth in enumerate(sorted(depths, key=int)):
        points = _values(course, "validation", f"depth_{depth}/loss")
        _line(axes, points, number, f"tokens of depth {depth}")
    _legend(axes)
    return figure


def _moving(course: Course, suite: str) -> list[str]:
    """Names of the suite's numbers that at least two checkpoints have; what speaks for the rest comes first."""
    counts: dict[str, int] = {}
    for each in course.checkpoints:
        for name in each.named.get(suite, {}):
            counts[name] = counts.get(name, 0) + 1
    several = [name for name, count in counts.items() if count > 1]
    # Averages, then what has the fewest parts in its name; errors come last.
    return sorted(several, key=lambda name: (name.endswith("stderr"), not name.startswith("average"), name.count("/")))


def _panels(course: Course, suite: str, names: Sequence[str], title: str) -> Drawing:
    """A small curve for each of the suite's numbers, the first few of them."""
    from matplotlib.ticker import MaxNLocator

    shown = names[:MOST_PANELS]
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    told = f"run {course.run}, {len(shown)} of {len(names)} numbers; each at the checkpoint's step"
    figure, first = new_figure(title, told, (3.4 * columns, 2.1 * rows + 0.7))
    first.remove()
    for number, name in enumerate(shown):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.spines[["top", "right"]].set_visible(False)
        _line(axes, _values(course, suite, name), 0, name)
        axes.set_title(label(name), fontsize=9, loc="left")
        axes.tick_params(labelsize=8)
        axes.set_xlabel("step", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.margins(x=0.08, y=0.2)
    return figure
