"""Ranks that left nothing of how they ended, while others say that they have lost somebody: their host may be gone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_NAMED = 4
"""Hosts named one by one; of more, the first ones and how many."""


def without_a_word(hosts: Mapping[str, Sequence[int]], told: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The report that those ranks could not write; empty where all have left one.

    hosts: the ranks of each. told: the reports of an attempt's ranks (`pipeline.training.attempt`), at least one. A
    host with no report at all is taken first: where a rank goes, torchrun ends the others of its host without a word.
    """
    heard = {report["rank"] for report in told}
    silent = {host: [rank for rank in ranks if rank not in heard] for host, ranks in hosts.items()}
    gone = [host for host, ranks in hosts.items() if silent[host] == list(ranks)]
    named = gone or [host for host in hosts if silent[host]]
    if not named:
        return []
    lost = ", ".join(f"{host} ({_span(silent[host])})" for host in named[:_NAMED])
    more = f" and {len(named) - _NAMED} more hosts" if len(named) > _NAMED else ""
    message = f"no word from {lost}{more}: killed from outside, out of memory, or the host is gone"
    first = min(told, key=lambda report: report["time"])
    return [{**first, "kind": "world", "rank": silent[named[0]][0], "host": named[0], "message": message}]


def _span(ranks: Sequence[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    if list(ranks) == list(range(ranks[0], ranks[-1] + 1)):
        return f"ranks {ranks[0]} to {ranks[-1]}"
    return f"{len(ranks)} ranks from {ranks[0]} to {ranks[-1]}"
