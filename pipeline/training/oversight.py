"""What watches over a training beside its loop: wishes to stop, the watchdog, the guards."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

import torch

from pipeline.training.agreement import StepFlags, agreed, told_by_all
from pipeline.training.engine import Engine
from pipeline.training.gate_health import GateHealth
from pipeline.training.guards import Guards
from pipeline.training.stopping import StopReason, StopRequests, stopped
from pipeline.training.watchdog import PATIENCE, Watchdog


@dataclass(frozen=True)
class Oversight:
    """One rank's."""

    requests: StopRequests
    watchdog: Watchdog
    guards: Guards
    gate_health: GateHealth

    def save(self, save: Callable[[Engine, int], None], engine: Engine, step: int) -> None:
        """Save, with patience, and remember how long it took; collective."""
        self.watchdog.alive(f"saving step {step}", PATIENCE)
        began = time.monotonic()
        save(engine, step)
        self.requests.saved(time.monotonic() - began)

    def stop_if_wished(self, step: int, device: torch.device) -> None:
        """Raise `Stopped` on every rank where any wants to stop while no step is taken; collective."""
        wish = self.requests.wish()
        if agreed(StepFlags(stop_wanted=wish is not None), device).stop_wanted:
            self.stop(step, wish, "no step was taken since")

    def stop(self, step: int, wish: StopReason | None, kept: str) -> NoReturn:
        """Raise `Stopped` on every rank, with the reasons of those that have one; collective.

        kept: what became of the work.
        """
        raise stopped(step, told_by_all(wish), kept)
