"""report.html and report.md in a folder: both of the same content, each whole or not at all."""

from __future__ import annotations

from pathlib import Path

from pipeline.durable import write_text
from pipeline.reporting.content import Report
from pipeline.reporting.html_page import html_page
from pipeline.reporting.markdown_page import markdown_page

HTML_NAME, MARKDOWN_NAME = "report.html", "report.md"
_HEAD_BYTES = 4096
"""The mark of the content stands near the beginning."""


def stands(folder: Path, content_sha256: str) -> bool:
    """Whether both files are there and are of this content."""
    return all(content_sha256 in _head(folder / name) for name in (HTML_NAME, MARKDOWN_NAME))


def write_report(folder: Path, report: Report) -> None:
    """Write both. A kill in between leaves two of different content, which `stands` tells: they are made anew.

    Raises OSError naming what cannot be read or written.
    """
    page, text = html_page(report), markdown_page(report, folder)
    write_text(folder / HTML_NAME, page)
    write_text(folder / MARKDOWN_NAME, text)


def _head(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(_HEAD_BYTES).decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""
