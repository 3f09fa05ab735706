"""Does what the ranks of a node take fit into its main memory? The scheduler's limit counts where it is lower.

What a GPU has to hold is seen by the mock step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from launch.preflight.check import Check, Context, Finding, Told, first_of_nodes
from launch.preflight.needs import needs

_PROCESS_BYTES = 600 << 20
"""Of a rank before it holds anything: Python and the libraries."""
_CGROUPS = Path("/sys/fs/cgroup")


def look(_: Context) -> dict[str, Any]:
    import psutil
    import torch

    available = psutil.virtual_memory().available
    return {
        "available_bytes": min([available, *_left_by_limits(Path("/proc/self/cgroup"), _CGROUPS)]),
        "on_gpu": torch.cuda.is_available(),
    }


def judge(context: Context, told: Sequence[Told]) -> list[Finding]:
    findings, least = [], None
    for node in first_of_nodes(told):
        on_gpu = node.seen["on_gpu"]
        memory = needs(context.recipe, len(told), on_gpu).rank
        ranks = sum(each.place.node == node.place.node for each in told)
        needed = max(sum(memory.host.values()), memory.host_start) if on_gpu else max(memory.peak, memory.host_start)
        needed = ranks * (needed + _PROCESS_BYTES)
        available = node.seen["available_bytes"]
        figures = {"host": node.place.host, "available_bytes": available, "needed_bytes": needed}
        if available < needed:
            findings.append(
                Finding(
                    "failed",
                    f"{node.place.host} has {_gib(available)} of main memory left, {ranks} ranks take about "
                    f"{_gib(needed)}: a larger --mem, fewer ranks a node, or a smaller train.micro_batch",
                    figures,
                )
            )
        if least is None or available - needed < least["available_bytes"] - least["needed_bytes"]:
            least = figures
    if findings or least is None:
        return findings
    text = f"{_gib(least['needed_bytes'])} needed on a node, {_gib(least['available_bytes'])} left on {least['host']}"
    return [Finding("ok", text, least)]


def _left_by_limits(own: Path, root: Path) -> Iterator[int]:
    """Bytes that each limit above this process leaves, of cgroups 2 and 1."""
    with suppress(OSError):
        for line in own.read_text(encoding="utf-8").splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers == "":
                base, limit, used, stat = root, "memory.max", "memory.current", "inactive_file"
            elif "memory" in controllers.split(","):
                base, limit, used, stat = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", ""
            else:
                continue
            folder = base / name.lstrip("/")
            for place in (folder, *folder.parents):
                with suppress(OSError, ValueError):
                    taken = int((place / used).read_text())
                    # Cached files count as taken, and go when memory is asked for.
                    fields = dict(row.split() for row in (place / "memory.stat").read_text().splitlines())
                    taken -= int(fields.get(stat or "total_inactive_file", 0))
                    yield max(0, int((place / limit).read_text()) - taken)
                if place == base:
                    break


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


CHECK = Check("memory", look, judge)
