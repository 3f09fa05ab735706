"""The tables that suites make for the terminal, taken into a report."""

from __future__ import annotations

from typing import Any

import rich.table
from rich.text import Text

from pipeline.reporting.content import Table


def taken_over(table: rich.table.Table) -> Table:
    """Cell by cell; what rich would colour is plain."""
    columns = [[_plain(cell) for cell in column.cells] for column in table.columns]
    return Table(
        title=_plain(table.title or ""),
        head=[_plain(column.header) for column in table.columns],
        rows=list(zip(*columns, strict=True)),
        numeric=frozenset(number for number, column in enumerate(table.columns) if column.justify == "right"),
        parts=frozenset(number for number, row in enumerate(table.rows[:-1]) if row.end_section),
    )


def _plain(cell: Any) -> str:
    return cell.plain if isinstance(cell, Text) else str(cell)
