"""What a report says, before it is HTML or Markdown. Every text here is plain: the writers escape it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Table:
    """Rows of texts below a head."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: frozenset[int] = frozenset()
    """Columns that stand to the right."""
    parts: frozenset[int] = frozenset()
    """Rows behind which a new part of the table begins."""
    marked: frozenset[int] = frozenset()
    """Rows that stand out."""


@dataclass(frozen=True)
class Figure:
    """An image file, and in a sentence what it shows."""

    path: Path
    title: str
    shows: str
    wide: bool = False
    """It has many parts, and the page's whole width."""


@dataclass(frozen=True)
class Tinted:
    """A text in pieces, each with its depth."""

    pieces: Sequence[tuple[str, int]]
    prompt_pieces: int
    """How many at the start were given."""
    max_passes: int


@dataclass(frozen=True)
class Fact:
    """A number that stands large, or a line of provenance."""

    name: str
    value: str
    told: str = ""
    """The unit, or what the number is a number of."""


@dataclass(frozen=True)
class Chapter:
    """A part of the report with a heading of its own."""

    title: str
    told: Sequence[str] = ()
    """Paragraphs."""
    facts: Sequence[Fact] = ()
    tables: Sequence[Table] = ()
    folded: Sequence[Table] = ()
    """Tables that are opened by whoever wants them."""
    figures: Sequence[Figure] = ()
    tinted: Tinted | None = None
    verbatim: tuple[str, str] | None = None
    """What it is, and the text; folded."""
    files: Sequence[tuple[Path, str]] = ()
    """Further files, and what each is."""


@dataclass(frozen=True)
class Report:
    """A whole report."""

    title: str
    told: str
    content_sha256: str
    """Of all that it was made from: the same content is not written again."""
    facts: Sequence[Fact] = ()
    """The few numbers at the top."""
    chapters: Sequence[Chapter] = field(default_factory=list)

    def figures(self) -> list[Figure]:
        return [figure for chapter in self.chapters for figure in chapter.figures]
