"""What a preflight found: a table for people, runs/NAME/launch/preflight.json for machines."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from rich.markup import escape
from rich.table import Table

from launch.preflight.check import Checked, Context
from pipeline.console import console, error_console
from pipeline.durable import write_json

_STYLES = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": "dim"}


def as_json(context: Context, done: Sequence[Checked]) -> dict[str, Any]:
    """Everything: the places, each check with its findings and figures, and whether none failed."""
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "recipe": context.recipe.name,
        "recipe_hash": context.recipe.hash(),
        "passed": all(checked.verdict != "failed" for checked in done),
        "ranks": [{"rank": place.rank, "node": place.node, "host": place.host} for place in context.meeting.places],
        "checks": [checked.as_dict() for checked in done],
    }


def write_report(context: Context, done: Sequence[Checked]) -> None:
    """Write the JSON, whole or not at all; a disk that refuses it is told, and what was found is not lost for that."""
    path = context.folder.preflight_file
    try:
        write_json(path, as_json(context, done))
    except OSError as error:
        error_console.print(f"preflight: {path} could not be written: {error.strerror}", style="yellow", markup=False)


def show(context: Context, done: Sequence[Checked]) -> None:
    """Print the table."""
    meeting = context.meeting
    nodes = f"{meeting.nodes} nodes" if meeting.nodes > 1 else meeting.me.host
    where = f"{len(meeting.places)} ranks on {nodes}" if meeting.store else f"seen from {nodes}"
    table = Table(title=f"preflight of {context.recipe.name}, {where}", title_justify="left")
    for column in ("check", "", "found"):
        table.add_column(column, overflow="fold")
    table.add_column("seconds", justify="right")
    for checked in done:
        for number, finding in enumerate(checked.findings):
            style = _STYLES[finding.verdict]
            table.add_row(
                "" if number else checked.name,
                f"[{style}]{finding.verdict}[/{style}]",
                escape(finding.message),
                "" if number else f"{checked.seconds:.1f}",
            )
    console.print(table)
