"""The figure of the suite `tasks`: accuracy by task with standard errors, and the mean depth beside it."""

from __future__ import annotations

from pathlib import Path

from pipeline.evaluation.figure import BLUE, DPI, GREEN, GREY, HEADING_INCHES, ORANGE
from pipeline.evaluation.task_metrics import STDERR, TaskFound, TaskMetrics

PURPLE = "#CC79A7"
COLOURS, HATCHES, MARKS = (BLUE, ORANGE, GREEN, PURPLE, GREY), ("", "//", "..", "xx", "\\\\"), "osD^v"
WIDTH, INCHES_PER_BAR = 8.5, 0.22


def write_task_plot(folder: Path, metrics: TaskMetrics) -> Path | None:
    """Write accuracy.png into `folder`; None, and no file, where no task counts right answers."""
    # Figure objects of one's own need no display and no global state, unlike pyplot.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    shown = [found for found in metrics.tasks if found.accuracy is not None]
    if not shown:
        return None
    names = sorted({found.task for found in shown}, reverse=True)  # the first on top
    rounds = sorted({found.shots for found in shown})
    height = 1.9 + INCHES_PER_BAR * len(names) * (len(rounds) + 1)
    figure = Figure(
        figsize=(WIDTH, height), layout=ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - HEADING_INCHES / height))
    )
    FigureCanvasAgg(figure)
    figure.text(0.012, 1 - 0.28 / height, "Right answers by task, and passes spent", fontsize=12, fontweight="bold")
    figure.text(0.012, 1 - 0.50 / height, _told(metrics), fontsize=8.5, color="#444444")
    accuracy, depth = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    thickness = 0.8 / len(rounds)
    for number, shots in enumerate(rounds):
        of_round = [found for found in shown if found.shots == shots]
        places = [names.index(found.task) + ((len(rounds) - 1) / 2 - number) * thickness for found in of_round]
        colour = COLOURS[number % len(COLOURS)]
        label = f"{shots} examples before a question" if shots else "no example before a question"
        bars = accuracy.barh(
            places,
            [_percent(found) for found in of_round],
            height=0.92 * thickness,
            xerr=[_percent(found, STDERR) for found in of_round],
            color=colour,
            hatch=HATCHES[number % len(HATCHES)],
            edgecolor="white",
            error_kw={"ecolor": "#222222", "capsize": 2, "linewidth": 1},
            label=label,
        )
        accuracy.bar_label(bars, [f"{_percent(found):.1f}" for found in of_round], fontsize=8, padding=4)
        depths = [found.mean_depth for found in of_round]
        depth.plot(depths, places, color=colour, marker=MARKS[number % len(MARKS)], linestyle="", markersize=6)
        for found, place in zip(of_round, places, strict=True):
            near = {"xytext": (7, 0), "textcoords": "offset points", "va": "center", "fontsize": 8}
            depth.annotate(f"{found.mean_depth:.2f}", (found.mean_depth, place), **near)
    accuracy.set_yticks(range(len(names)), names)
    accuracy.set_xlim(0, 112)
    accuracy.set_xticks(range(0, 101, 20))
    accuracy.set_xlabel("right answers (%), with standard error")
    depth.set_xlim(0.8, metrics.max_passes + 0.7)
    depth.set_xticks(range(1, metrics.max_passes + 1))
    depth.set_xlabel("mean depth of answers (passes)")
    depth.grid(axis="x", color="#DDDDDD")
    for axes in (accuracy, depth):
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*accuracy.get_legend_handles_labels(), loc="outside lower left", frameon=False, fontsize=9, ncols=2)
    path = folder / "accuracy.png"
    figure.savefig(path, dpi=DPI)
    return path


def _told(metrics: TaskMetrics) -> str:
    means = [
        f"{100 * of_all['acc']:.1f} % with {shots.removesuffix('shot')} examples"
        for shots, of_all in metrics.averages.items()
        if "acc" in of_all
    ]
    average = f"; average {', '.join(means)}" if means else ""
    return f"step {metrics.identity.step:,}, at most {metrics.max_passes} passes{average}"


def _percent(found: TaskFound, suffix: str = "") -> float:
    return 100 * found.metrics.get(f"{found.accuracy}{suffix}", 0.0)
