"""The picture of document lengths: a line a source, over doubling numbers of tokens.

Colours are Okabe and Ito's, which stay apart for colour-blind readers; lines differ in their marks too.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from pipeline.durable import whole_file
from tokenization.inspection.document_lengths import Lengths

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C8C")
MARKS = ("o", "s", "^", "D", "v", "P", "X", ".")
INCHES, DPI = (9.0, 5.2), 150


def write_length_plot(path: Path, lengths: dict[str, Lengths], folder: str) -> None:
    """Write the PNG `path`; `folder` names the data set in it. Raises `OSError` where it cannot be written."""
    # Figure objects of one's own need no display and no global state, unlike pyplot.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    lines = _lines(lengths)
    together = Lengths()
    for one in lengths.values():
        together.join(one)
    figure = Figure(figsize=INCHES, layout=ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - 0.6 / INCHES[1])))
    FigureCanvasAgg(figure)
    figure.text(0.012, 1 - 0.28 / INCHES[1], "How long the documents are", fontsize=12, fontweight="bold")
    told = (
        f"{together.documents:,} documents, {together.tokens:,} tokens, {together.mean:,.0f} tokens a document on "
        f"average, {together.longest:,} at most; {folder}"
    )
    figure.text(0.012, 1 - 0.50 / INCHES[1], told, fontsize=8.5, color="#444444", parse_math=False)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    low, high = min(together.bins, default=0), max(together.bins, default=0)
    powers = list(range(low, high + 1))
    for (name, one), colour, mark in zip(lines, COLOURS, MARKS, strict=False):
        shares = [100 * one.bins[power] / one.documents for power in powers]
        # Names are data: a leading "_" would hide a line from the legend, dollar signs would be typeset.
        label = f"\u200b{name} ({one.documents:,} documents, {one.mean:,.0f} tokens on average)".replace("$", r"\$")
        axes.plot(powers, shares, color=colour, marker=mark, markersize=5, linewidth=1.6, label=label)
    axes.set_xlabel("length of the document (tokens, its end-of-document mark included)")
    axes.set_ylabel("share of the source's documents (%)")
    axes.set_xticks(powers, [f"{2**power:,}\nto {2 ** (power + 1) - 1:,}" for power in powers], fontsize=7)
    axes.set_xlim(low - 0.5, high + 0.5)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    if lines:
        figure.legend(loc="outside lower center", frameon=False, fontsize=8, ncols=2)
    with whole_file(path) as file, warnings.catch_warnings():
        # A box stands where the font lacks a letter of a name; the tables have the names in full.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
        figure.savefig(file, format="png", dpi=DPI)


def _lines(lengths: dict[str, Lengths]) -> list[tuple[str, Lengths]]:
    """The sources with most documents, and the others together, as many as there are colours."""
    ranked = sorted(
        ((name, one) for name, one in lengths.items() if one.documents), key=lambda pair: -pair[1].documents
    )
    if len(ranked) <= len(COLOURS):
        return ranked
    shown, others = ranked[: len(COLOURS) - 1], Lengths()
    for _, one in ranked[len(COLOURS) - 1 :]:
        others.join(one)
    return [*shown, (f"{len(ranked) - len(shown)} other sources", others)]
