"""Where the time of a step goes and what memory it takes: means over the steps since the last logged one.

On a CPU a part lasts from its call to its return. On a GPU a call returns long before the work is done, so that events
in the stream take the time there; nothing waits for them but the reading of a logged step's own metrics.
"""

from __future__ import annotations

import resource
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch

from pipeline.training.agreement import numbers_of_all

Part = Literal["data", "forward", "backward", "optimizer"]
PARTS: tuple[Part, ...] = get_args(Part)


class StepClock:
    """One rank's: `begin`, `part` for each part, `lap` where a step is logged, `end`, `saved` after a save."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._in_stream: deque[tuple[Part, torch.cuda.Event, torch.cuda.Event]] = deque()
        self._save_seconds = 0.0
        self._lap_began = self._began = self._ended = time.perf_counter()
        self.worked = 0.0
        """Seconds that this step's parts took so far by the processor's clock."""
        self._start_lap()

    def begin(self) -> None:
        """A step begins."""
        self._began = time.perf_counter()
        self._steps += 1
        self.worked = 0.0

    @contextmanager
    def part(self, name: Part) -> Iterator[None]:
        """Count what happens inside as this part of the step."""
        # Rows are waited for by the processor alone.
        in_stream = self._device.type == "cuda" and name != "data"
        first = self._mark() if in_stream else None
        began = time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        self.worked += seconds
        if first is None:
            self._seconds[name] += seconds
        else:
            self._in_stream.append((name, first, self._mark()))
            self._take_what_is_done()

    def lap(self) -> dict[str, float]:
        """Metrics of the steps since the last lap; collective.

        Called where the device has done all that it was asked for. Parts are means over ranks, the share of time spent
        waiting for rows and the memory are those of the rank that has most.
        """
        self._take_what_is_done(all_of_it=True)
        now = time.perf_counter()
        step_seconds = (now - self._lap_began) / self._steps
        mine = [self._seconds[name] / self._steps for name in PARTS]
        mine += [self._save_seconds / self._steps, float(peak_memory_bytes(self._device))]
        ranks = numbers_of_all(mine, self._device)
        *parts, save, _ = (sum(numbers) / len(ranks) for numbers in zip(*ranks, strict=True))
        found = {"speed/step_seconds": step_seconds, "speed/data_share": max(rank[0] for rank in ranks) / step_seconds}
        found |= {f"time/{name}_seconds": seconds for name, seconds in zip(PARTS, parts, strict=True)}
        found |= {"time/save_seconds": save, "memory/peak_bytes": max(rank[-1] for rank in ranks)}
        self._lap_began, self._save_seconds = now, 0.0
        self._start_lap()
        return found

    def end(self) -> float:
        """The step is over; returns how long it took, s."""
        self._ended = time.perf_counter()
        return self._ended - self._began

    def saved(self) -> None:
        """The time since the step's end went into a save: it is no part of a step, and told by the next lap."""
        self._lap_began = time.perf_counter()
        self._save_seconds += self._lap_began - self._ended

    def _start_lap(self) -> None:
        self._steps = 0
        self._seconds: dict[Part, float] = dict.fromkeys(PARTS, 0.0)

    def _mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _take_what_is_done(self, all_of_it: bool = False) -> None:
        while self._in_stream and (all_of_it or self._in_stream[0][2].query()):
            name, first, last = self._in_stream.popleft()
            last.synchronize()
            self._seconds[name] += first.elapsed_time(last) / 1000


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory that this process has had: allocated tensors on a GPU, what was resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
