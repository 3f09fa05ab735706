"""A report as Markdown, for terminals, repositories and reviews; its figures are files beside it.

Texts are data here too: what could become markup is escaped.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from pipeline.reporting.content import Chapter, Figure, Report, Table, Tinted

CONTENT_MARK = "adaponder-content"
_MARKUP = re.compile(r"([\\`*_{}\[\]#|!~$])")
_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def markdown_page(report: Report, folder: Path) -> str:
    """The text, for a file in `folder`: figures are named from there."""
    parts = [f"<!-- {CONTENT_MARK} {report.content_sha256} -->", f"# {_text(report.title)}", _text(report.told)]
    if report.facts:
        rows = [(fact.name, fact.value, fact.told) for fact in report.facts]
        parts.append(_table(Table("", ("", "", "unit"), rows, frozenset({1}))))
    for chapter in report.chapters:
        parts += _chapter(chapter, folder)
    return "\n\n".join(part for part in parts if part) + "\n"


def _text(text: str) -> str:
    """On one line, with every sign that Markdown or HTML would take for its own as it is."""
    plain = " ".join(text.split())
    plain = plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKUP.sub(r"\\\1", plain)


def _chapter(chapter: Chapter, folder: Path) -> list[str]:
    parts = [f"## {_text(chapter.title)}", *map(_text, chapter.told)]
    if chapter.tinted is not None:
        parts += _tinted(chapter.tinted)
    if chapter.facts:
        parts.append("\n".join(f"- {_text(fact.name)}: {_text(fact.value)}" for fact in chapter.facts))
    parts += [_table(table) for table in (*chapter.tables, *chapter.folded)]
    parts += [_figure(figure, folder) for figure in chapter.figures]
    if chapter.verbatim is not None:
        name, text = chapter.verbatim
        parts += [f"{_text(name)}:", _verbatim(text)]
    if chapter.files:
        # Names and not links: the text is read without its folder's larger files, too.
        lines = (f"- {_text('/'.join(path.parts[-2:]))}: {_text(told)}" for path, told in chapter.files)
        parts.append("\n".join(lines))
    return parts


def _table(table: Table) -> str:
    rules = ["---:" if column in table.numeric else "---" for column in range(len(table.head))]
    lines = [table.head, rules, *table.rows]
    texts = []
    for number, line in enumerate(lines):
        cells = list(line) if number == 1 else [_text(cell) for cell in line]
        if number - 2 in table.marked:
            cells = [f"**{cell}**" if cell else "" for cell in cells]
        texts.append(f"| {' | '.join(cells)} |")
    title = f"**{_text(table.title)}**\n\n" if table.title else ""
    return title + "\n".join(texts)


def _figure(figure: Figure, folder: Path) -> str:
    alt = _text(f"{figure.title}. {figure.shows}")
    return f"![{alt}]({_link(figure.path, folder)})\n\n**{_text(figure.title)}.** {_text(figure.shows)}"


def _link(path: Path, folder: Path) -> str:
    return quote(Path(os.path.relpath(path, folder)).as_posix())


def _tinted(tinted: Tinted) -> list[str]:
    def marked(pieces: Sequence[tuple[str, int]]) -> str:
        return "".join(f"{text}{str(depth).translate(_SUBSCRIPTS)}" for text, depth in pieces)

    given, written = tinted.pieces[: tinted.prompt_pieces], tinted.pieces[tinted.prompt_pieces :]
    parts = ["Behind every token stands its depth, the passes it took part in. The prompt:", _verbatim(marked(given))]
    return [*parts, "and what was written after it:", _verbatim(marked(written))] if written else parts


def _verbatim(text: str) -> str:
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text.rstrip()}\n{fence}"
