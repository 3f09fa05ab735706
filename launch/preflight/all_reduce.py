"""Is what all ranks sum up right, and how fast does it travel? In growing sizes, each sum compared to the last number.

Every rank adds numbers whose sum float32 holds exactly, so that a wrong bit anywhere shows.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from launch.preflight.check import Check, Context, Finding, Told, named

_REPETITIONS = 5
_PERIOD = 1009
"""The numbers that a rank adds repeat after so many, a prime: a block at the wrong place shows."""


def look(context: Context) -> dict[str, Any]:
    """Wrong elements, and this rank's bytes a second, by size in MiB."""
    import torch
    import torch.distributed as dist

    meeting = context.meeting
    world_size, rank = len(meeting.places), meeting.rank
    device = torch.device("cuda", meeting.me.local_rank) if torch.cuda.is_available() else torch.device("cpu")
    wrong, speeds = {}, {}
    for size in context.settings.all_reduce_mebibytes:
        pattern = (torch.arange((size << 20) // 4, device=device) % _PERIOD).float()
        sums = pattern + rank
        dist.all_reduce(sums)
        expected = pattern * world_size + world_size * (world_size - 1) / 2
        wrong[str(size)] = int((sums != expected).sum())
        dist.barrier()
        began = time.perf_counter()
        for _ in range(_REPETITIONS):
            dist.all_reduce(sums)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = (time.perf_counter() - began) / _REPETITIONS
        # What a ring moves over each rank's link, whatever the number of ranks (NCCL's bus bandwidth).
        speeds[str(size)] = 2 * (world_size - 1) / world_size * (size << 20) / seconds
    return {"wrong": wrong, "bytes_per_second": speeds}


def judge(_: Context, told: Sequence[Told]) -> list[Finding]:
    findings = []
    for size in told[0].seen["wrong"]:
        if ranks := [each.place for each in told if each.seen["wrong"][size]]:
            count = max(each.seen["wrong"][size] for each in told)
            findings.append(
                Finding(
                    "failed",
                    f"a sum over all ranks of {size} MiB is wrong in up to {count:,} numbers on {named(ranks)}: broken "
                    "memory, a broken link, or its driver",
                )
            )
    if findings:
        return findings
    speeds = {size: sorted(each.seen["bytes_per_second"][size] for each in told) for size in told[0].seen["wrong"]}
    text = ", ".join(f"{size} MiB at {found[0] / 1e9:.2f} GB/s" for size, found in speeds.items())
    figures = {
        str(each.place): {size: round(speed) for size, speed in each.seen["bytes_per_second"].items()} for each in told
    }
    return [Finding("ok", f"sums are exact; {text} (slowest rank)", {"bytes_per_second": figures})]


CHECK = Check("all_reduce", look, judge, collective=True)
