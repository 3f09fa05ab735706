"""Which rank holds up the others: the time that each works on a step, what it waits for the others left out.

In a step's own length all ranks are alike, since every collective ends for all of them when the last one has come.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from pipeline.training.agreement import numbers_of_all, told_by_all
from pipeline.training.collective_waits import CollectiveWaits
from pipeline.training.guards import Note

LOOKS = 5
"""Looks in a row before a rank is called slow, or no longer slow."""


class RankTimes:
    """Looks at every n-th step of a segment; all its methods are called on every rank."""

    def __init__(self, every_steps: int, slow_ratio: float, device: torch.device, note: Note) -> None:
        """every_steps: 0 never looks. slow_ratio: a slow rank works so many times the median."""
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        self._every = every_steps if ranks > 1 else 0
        self._ratio, self._device, self._note = slow_ratio, device, note
        self._waits = CollectiveWaits(device)
        self._found: dict[str, float] = {}
        self._slow: int | None = None
        self._candidate: int | None = None
        self._looks = 0

    @contextmanager
    def watching(self, step: int) -> Iterator[None]:
        """Around the work of `step`."""
        if not self._looks_at(step):
            yield
            return
        with self._waits.measured():
            yield

    def look(self, step: int, seconds: float) -> None:
        """Compare the ranks where `step` was watched; collective.

        seconds: what this rank's parts of the step took, waiting inside them included.
        """
        if not self._looks_at(step):
            return
        times = [own for (own,) in numbers_of_all([max(0.0, seconds - self._waits.seconds)], self._device)]
        # Of two ranks the faster one: against the mean of both no rank is ever twice as slow.
        median, longest = statistics.median_low(times), max(times)
        slowest = times.index(longest)
        ratio = longest / median if median else 1.0
        self._found = {
            "ranks/step_seconds_min": min(times),
            "ranks/step_seconds_median": median,
            "ranks/step_seconds_max": longest,
            "ranks/slowest_over_median": ratio,
            "ranks/slowest": float(slowest),
        }
        self._judge(step, slowest if ratio >= self._ratio else None, times, median)

    def found(self) -> dict[str, float]:
        """Metrics of a look since the last call, none where there was none."""
        found, self._found = self._found, {}
        return found

    def _looks_at(self, step: int) -> bool:
        return bool(self._every) and step % self._every == 0

    def _judge(self, step: int, slowest: int | None, times: list[float], median: float) -> None:
        self._looks = self._looks + 1 if slowest == self._candidate else 1
        self._candidate = slowest
        if self._looks < LOOKS or slowest == self._slow:
            return
        was, self._slow = self._slow, slowest
        # All ranks have the same times and come to the same: the one that is meant says its name.
        meant = was if slowest is None else slowest
        ((_, who),) = told_by_all(True if _rank() == meant else None)
        host = who.partition(" on ")[2]
        if slowest is None:
            message = f"{who} works as fast as the others again, at step {step}"
            self._note("slow_rank_recovered", message, step=step, rank=meant, rank_host=host)
            return
        message = (
            f"{who} is slow: it works {times[slowest]:.3g} s on step {step}, the median of {len(times)} ranks is "
            f"{median:.3g} s, and so it was in the last {LOOKS} looks"
        )
        self._note("slow_rank", message, step=step, rank=slowest, rank_host=host, seconds=times[slowest], median=median)


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
