"""How long a rank waits for the others inside a step: the time of every collective that DeepSpeed calls.

While it is measured each collective is waited for at once, on a GPU with the device brought to a stand before and
after. What is computed stays the same; what would have overlapped does not, so a few steps are measured, not all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

COLLECTIVES = (
    "broadcast",
    "all_reduce",
    "inference_all_reduce",
    "all_reduce_coalesced",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_base",
    "all_gather_coalesced",
    "all_to_all_single",
    "all_to_all",
    "barrier",
    "monitored_barrier",
)
"""Methods of DeepSpeed's communication backend; all that its engine does between ranks goes through it."""


class CollectiveWaits:
    """Seconds spent in collectives while `measured`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._inside = False
        self.seconds = 0.0
        """Of the last or current measurement."""

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Count the collectives that are called inside."""
        from deepspeed.comm import comm

        backend: Any = comm.cdb
        assert backend is not None, "deepspeed.init_distributed comes first"
        self.seconds = 0.0
        names = [name for name in COLLECTIVES if hasattr(backend, name)]
        for name in names:
            setattr(backend, name, self._counted(getattr(backend, name)))
        try:
            yield
            self._stand_still()
        finally:
            for name in names:
                delattr(backend, name)  # the class's own method shows again

    def _counted(self, collective: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._inside:  # one collective that is made of others
                return collective(*args, **kwargs)
            self._stand_still()
            self._inside = True
            began = time.perf_counter()
            try:
                work = collective(*args, **kwargs)
                if hasattr(work, "wait"):
                    work.wait()
                self._stand_still()
            finally:
                self._inside = False
                self.seconds += time.perf_counter() - began
            return work

        return call

    def _stand_still(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
