"""A page on which tokens stand on the colours of their depths: one file, nothing from elsewhere, no script.

Texts are data: whatever a document or a network wrote is escaped.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

from pipeline.evaluation.depth_colours import letters_on, tint
from pipeline.evaluation.sample import Sample

_STYLE = """
body{font:15px/1.55 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}
p.text,div.text{font-family:ui-monospace,monospace;white-space:pre-wrap;overflow-wrap:anywhere;margin:.2rem 0 1rem}
.told{color:#555;font-size:.85rem;margin:0}
b.it{outline:2px solid #D55E00;outline-offset:1px}
.beside{display:grid;grid-template-columns:1fr 1fr;gap:1.5rem}
table{border-collapse:collapse;font-size:.9rem}td,th{padding:.15rem .7rem;text-align:right;border-bottom:1px solid #ddd}
td:first-child,th:first-child{text-align:left;font-family:ui-monospace,monospace;white-space:pre}
"""


def tinted_page(title: str, parts: Sequence[str], max_passes: int) -> str:
    """The whole page; `parts` are HTML, `title` is text. Class dN is the colour of depth N."""
    colours = "".join(
        f".d{depth}{{background:{tint(depth, max_passes)};color:{letters_on(depth, max_passes)}}}"
        for depth in range(1, max_passes + 1)
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
        f"<style>{_STYLE}{colours}</style></head>\n<body><h1>{html.escape(title)}</h1>\n" + "\n".join(parts)
    ) + "\n</body></html>\n"


def legend(max_passes: int) -> str:
    """Every depth on its colour."""
    return " ".join(f'<span class="d{depth}">&nbsp;{depth}&nbsp;</span>' for depth in range(1, max_passes + 1))


def tinted_text(sample: Sample) -> str:
    """A sample, the prompt in bold; a piece of several tokens has the largest depth among them."""
    spans = []
    for number, piece in enumerate(sample.pieces):
        mark = "b" if number < sample.prompt_pieces else "span"
        depths = ", ".join(map(str, piece.depths))
        spans.append(f'<{mark} class="d{piece.depth}" title="depth {depths}">{html.escape(piece.text)}</{mark}>')
    return f'<div class="text">{"".join(spans)}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts, the first column to the left."""
    lines = ["<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return "<table>" + "".join(lines) + "</table>"
