"""A report as one HTML file: no scripts, and nothing is loaded from anywhere; figures stand in it as data.

Texts are data: all that comes from a recipe, a document or a token is escaped here, in one place.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from pipeline.reporting.content import Chapter, Fact, Figure, Report, Table, Tinted
from pipeline.reporting.style import style

CONTENT_MARK = "adaponder-content"
"""Name of the meta element that holds the report's content_sha256."""
# Whatever a hole in the escaping might let in: the browser neither runs nor fetches it.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_TYPES = {".png": "image/png", ".svg": "image/svg+xml"}


def html_page(report: Report) -> str:
    """The page. Raises OSError for a figure that cannot be read."""
    passes = max((chapter.tinted.max_passes for chapter in report.chapters if chapter.tinted), default=1)
    links = [f'<a href="#{_anchor(number)}">{_text(c.title)}</a>' for number, c in enumerate(report.chapters)]
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="referrer" content="no-referrer">',
        f'<meta name="{CONTENT_MARK}" content="{_text(report.content_sha256)}">',
        # Without an icon of its own a browser would ask the server of the page for one.
        '<link rel="icon" href="data:,">',
        f"<title>{_text(report.title)}</title>\n<style>\n{style(passes)}\n</style>\n</head>\n<body>\n<main>",
        f'<header>\n<p class="kind">AdaPonder report</p>\n<h1>{_text(report.title)}</h1>',
        f'<p class="soft">{_text(report.told)}</p>',
        _tiles(report.facts),
        f'<nav aria-label="Chapters">{"".join(links)}</nav>\n</header>',
        *(_chapter(number, chapter) for number, chapter in enumerate(report.chapters)),
        f"<footer>Content {_text(report.content_sha256)}. Figures stand in this file; it loads nothing.</footer>",
        "</main>\n</body>\n</html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _text(text: str) -> str:
    return html.escape(text, quote=True)


def _anchor(number: int) -> str:
    return f"chapter-{number + 1}"


def _chapter(number: int, chapter: Chapter) -> str:
    parts = [f'<section aria-labelledby="{_anchor(number)}">\n<h2 id="{_anchor(number)}">{_text(chapter.title)}</h2>']
    parts += [f"<p>{_text(paragraph)}</p>" for paragraph in chapter.told]
    if chapter.tinted is not None:
        parts.append(_tinted(chapter.tinted))
    if chapter.facts:
        lines = "\n".join(f"<dt>{_text(fact.name)}</dt><dd>{_text(fact.value)}</dd>" for fact in chapter.facts)
        parts.append(f'<dl class="lines">\n{lines}\n</dl>')
    parts += [_table(table) for table in chapter.tables]
    if chapter.figures:
        parts.append(f'<div class="figures">\n{_figures(chapter.figures)}\n</div>')
    parts += [
        f"<details><summary>{_text(table.title)}</summary>{_table(table, caption=False)}</details>"
        for table in chapter.folded
    ]
    if chapter.verbatim is not None:
        name, text = chapter.verbatim
        parts.append(f"<details><summary>{_text(name)}</summary><pre>{_text(text)}</pre></details>")
    if chapter.files:
        # Names and not links: the page is read without its folder, too.
        names = "".join(
            f"<dt>{_text('/'.join(path.parts[-2:]))}</dt><dd>{_text(told)}</dd>" for path, told in chapter.files
        )
        parts.append(f'<dl class="lines">{names}</dl>')
    parts.append("</section>")
    return "\n".join(parts)


def _tiles(facts: Sequence[Fact]) -> str:
    tiles = "\n".join(
        f'<div class="fact"><dt>{_text(fact.name)}</dt><dd><div class="value">{_text(fact.value)}</div>'
        f'<div class="unit">{_text(fact.told)}</div></dd></div>'
        for fact in facts
    )
    return f'<dl class="facts">\n{tiles}\n</dl>' if facts else ""


def _table(table: Table, caption: bool = True) -> str:
    def cells(texts: Sequence[str], mark: str) -> str:
        return "".join(
            f"<{mark}{_right(table, column)}{_column_scope(mark)}>{_text(text)}</{mark}>"
            for column, text in enumerate(texts)
        )

    rows = []
    for number, row in enumerate(table.rows):
        classes = [name for name, where in (("marked", table.marked), ("end", table.parts)) if number in where]
        kind = f' class="{" ".join(classes)}"' if classes else ""
        rows.append(f"<tr{kind}>{cells(row, 'td')}</tr>")
    title = f"<caption>{_text(table.title)}</caption>" if caption and table.title else ""
    body = "\n".join(rows)
    return (
        f'<div class="wide"><table>{title}\n<thead><tr>{cells(table.head, "th")}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _right(table: Table, column: int) -> str:
    return ' class="n"' if column in table.numeric else ""


def _column_scope(mark: str) -> str:
    return ' scope="col"' if mark == "th" else ""


def _figures(figures: Sequence[Figure]) -> str:
    parts = []
    for figure in figures:
        alt = _text(f"{figure.title}. {figure.shows}")
        kind = ' class="wide-figure"' if figure.wide else ""
        caption = f"<figcaption><b>{_text(figure.title)}</b>{_text(figure.shows)}</figcaption>"
        parts.append(f'<figure{kind}><img src="{_data(figure.path)}" alt="{alt}">{caption}</figure>')
    return "\n".join(parts)


def _data(path: Path) -> str:
    content = base64.b64encode(path.read_bytes()).decode("ascii")
    return f"data:{_TYPES[path.suffix]};base64,{content}"


def _tinted(tinted: Tinted) -> str:
    legend = "".join(f'<span class="d{depth}">{depth}</span>' for depth in range(1, tinted.max_passes + 1))
    pieces = []
    for number, (text, depth) in enumerate(tinted.pieces):
        mark = "b" if number < tinted.prompt_pieces else "span"
        passes = "1 pass" if depth == 1 else f"{depth} passes"
        pieces.append(f'<{mark} class="d{depth}" title="{passes}">{_text(text)}</{mark}>')
    return (
        f'<p class="legend">Passes: {legend}</p>\n'
        f'<p class="tinted">{"".join(pieces)}</p>\n<p class="soft">Underlined: the prompt.</p>'
    )
