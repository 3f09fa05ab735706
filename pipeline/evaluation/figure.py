"""What all figures of an evaluation have in common. Each is read alone: title, what was evaluated, units, legend.

Colours are Okabe and Ito's, which stay apart for colour-blind readers; lines differ in their marks too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#8C8C8C"
PURPLE, SKY, YELLOW = "#CC79A7", "#56B4E9", "#E69F00"
INCHES, DPI = (7.5, 4.5), 150
HEADING_INCHES = 0.6
_LONGEST_LABEL = 40


def label(name: str) -> str:
    """A name from elsewhere as matplotlib writes it: on one line, short enough, and a $ begins no formula."""
    line = " ".join(name.split())
    short = line if len(line) <= _LONGEST_LABEL else f"{line[: _LONGEST_LABEL - 1]}…"
    return short.replace("$", r"\$")


def new_figure(title: str, told: str, inches: tuple[float, float] = INCHES) -> tuple[Figure, Axes]:
    """A figure of that size with its heading: the title, and below it in small what was evaluated."""
    # Figure objects of one's own need no display and no global state, unlike pyplot.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    height = inches[1]
    figure = Figure(figsize=inches, layout=ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - HEADING_INCHES / height)))
    FigureCanvasAgg(figure)
    figure.text(0.012, 1 - 0.28 / height, title, fontsize=12, fontweight="bold")
    figure.text(0.012, 1 - 0.50 / height, told, fontsize=8.5, color="#444444")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
