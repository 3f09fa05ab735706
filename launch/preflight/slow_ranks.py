"""Is a rank slower than the others? A training goes at the pace of the slowest, and does not say whose that is.

Each rank multiplies matrices for itself, then sends to two neighbours, one at a time, and takes its faster link: so the
neighbour of a slow rank is not called slow. Ranks of several nodes send to the next nodes.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from launch.preflight.check import Check, Context, Finding, Place, Told

_SECONDS = 1.0
"""Of multiplying: long enough that a rank which is held up now and then shows it."""
_SENT_BYTES = 4 << 20
_REPETITIONS = 4


def look(context: Context) -> dict[str, Any]:
    """Multiplications a second, and bytes a second over the faster link (None where there is no second neighbour)."""
    import torch

    meeting = context.meeting
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", meeting.me.local_rank) if on_gpu else torch.device("cpu")
    torch.distributed.barrier()
    products = _multiply(device, 4096 if on_gpu else 256)
    links = [_exchange(device, phase[meeting.rank]) for phase in phases(meeting.places)]
    found = [link for link in links if link]
    return {"products_per_second": products, "bytes_per_second": max(found) if len(found) > 1 else None}


def judge(context: Context, told: Sequence[Told]) -> list[Finding]:
    factor, findings = context.settings.slow_rank_factor, []
    for what, unit in (("products_per_second", "computes"), ("bytes_per_second", "sends")):
        speeds = {each.place: each.seen[what] for each in told if each.seen[what] is not None}
        if not speeds:
            continue
        # With two ranks there is a faster and a slower one; of more, the middle one is what is usual.
        usual = sorted(speeds.values())[len(speeds) // 2]
        findings += [
            Finding(
                "failed",
                f"{place} {unit} {usual / speed:.1f} times slower than the others: look for other work, heat, power "
                "limits or a bad link there, or take the node out",
                {what: speed, "usual": usual},
            )
            for place, speed in speeds.items()
            if speed * factor < usual
        ]
    if findings:
        return findings
    computing = [each.seen["products_per_second"] for each in told]
    text = (
        f"the slowest of {len(told)} ranks computes {max(computing) / min(computing):.2f} times slower than the fastest"
    )
    figures = {str(each.place): each.seen for each in told}
    return [Finding("ok", text, figures)]


def phases(places: Sequence[Place]) -> list[list[int | None]]:
    """Who exchanges with whom, by rank, in turn: every rank has both neighbours of its ring once.

    Rings run over nodes, through the ranks of the same number on each, where all nodes have as many; else over ranks.
    """
    sizes = Counter(place.node for place in places)
    regular = len(sizes) > 1 and len(set(sizes.values())) == 1
    width = sizes[0] if regular else 1
    rings = [list(range(start, len(places), width)) for start in range(width)]
    found: list[list[int | None]] = []
    for turn in _turns(len(rings[0])):
        partners: list[int | None] = [None] * len(places)
        for ring in rings:
            for one, other in turn:
                partners[ring[one]], partners[ring[other]] = ring[other], ring[one]
        found.append(partners)
    return found


def _turns(size: int) -> list[list[tuple[int, int]]]:
    """The links of a ring in turns, in each of which a member has one partner at most."""
    if size < 2:
        return []
    if size == 2:
        return [[(0, 1)]]
    even = [(first, first + 1) for first in range(0, size - 1, 2)]
    odd = [(first, (first + 1) % size) for first in range(1, size - (size % 2), 2)]
    return [even, odd, *([[(size - 1, 0)]] if size % 2 else [])]


def _multiply(device: Any, size: int) -> float:
    import torch

    matrix = torch.randn(size, size, device=device, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32)
    for _ in range(3):
        torch.mm(matrix, matrix)
    _stand_still(device)
    count, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < _SECONDS:
        for _ in range(10):
            torch.mm(matrix, matrix)
        _stand_still(device)
        count += 10
    return count / passed


def _exchange(device: Any, partner: int | None) -> float | None:
    """Bytes a second each way between this rank and `partner`; collective over all ranks."""
    import torch
    import torch.distributed as dist

    dist.barrier()
    if partner is None:
        return None
    sent = torch.ones(_SENT_BYTES // 4, device=device)
    received = torch.empty_like(sent)

    def exchange() -> None:
        operations = [dist.P2POp(dist.isend, sent, partner), dist.P2POp(dist.irecv, received, partner)]
        for work in dist.batch_isend_irecv(operations):
            work.wait()
        _stand_still(device)

    exchange()
    began = time.perf_counter()
    for _ in range(_REPETITIONS):
        exchange()
    return _REPETITIONS * _SENT_BYTES / (time.perf_counter() - began)


def _stand_still(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


CHECK = Check("slow_ranks", look, judge, collective=True)
