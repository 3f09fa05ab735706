"""One line for a training that stood still, from what each rank's watchdog reported: who held up whom, and where."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_NAMED = 4
"""Ranks named one by one; of more, the first ones and how many."""


def hang_line(reports: Sequence[dict[str, Any]]) -> str:
    """Who stood where, the likeliest culprits first: ranks without a report, then those that waited for nobody.

    reports: of the ranks that could report, at least one; each with rank, host, world_size, doing, seconds, function
    and waiting (`pipeline.training.watchdog.Hang`).
    """
    reports = sorted(reports, key=lambda report: report["rank"])
    heard = {report["rank"] for report in reports}
    silent = [rank for rank in range(reports[0]["world_size"]) if rank not in heard]
    parts = []
    if silent:
        gives = "gives" if len(silent) == 1 else "give"
        parts.append(f"{_names([f'rank {rank}' for rank in silent])} {gives} no sign (stopped, or its host is gone)")
    stood: dict[tuple[bool, str], list[str]] = {}
    for report in reports:
        stood.setdefault((report["waiting"], report["function"]), []).append(_name(report))
    for (waiting, function), ranks in sorted(stood.items(), key=lambda item: (item[0][0], len(item[1]))):
        parts.append(f"{_names(ranks)} {'waited for others' if waiting else 'stood'} in {function}")
    longest = max(reports, key=lambda report: report["seconds"])
    return (
        f"no step for {longest['seconds'] / 60:.1f} minutes, at {longest['doing']}: {'; '.join(parts)}; the stacks of "
        "all threads are in the rank logs, the same command continues from the last checkpoint"
    )


def _name(report: dict[str, Any]) -> str:
    return f"rank {report['rank']} on {report['host']}"


def _names(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
