"""What watches over a training beside its loop: wishes to stop, the watchdog, the guards, the depth that it aims at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

import torch

from pipeline.training.agreement import StepFlags, agreed, told_by_all
from pipeline.training.depth_control import DepthControl
from pipeline.training.engine import Engine
from pipeline.training.gate_health import GateHealth
from pipeline.training.guards import Guards
from pipeline.training.saves_in_flight import SavesInFlight
from pipeline.training.stopping import StopReason, StopRequests, stopped
from pipeline.training.watchdog import PATIENCE, Watchdog


@dataclass(frozen=True)
class Oversight:
    """One rank's."""

    requests: StopRequests
    watchdog: Watchdog
    guards: Guards
    gate_health: GateHealth
    saves: SavesInFlight
    depth_control: DepthControl

    def save(self, save: Callable[[Engine, int], None], engine: Engine, step: int) -> None:
        """Save after the save before, with patience for each; collective. What is saved counts after `settle` only."""
        self.settle()
        self.watchdog.alive(f"saving step {step}", PATIENCE)
        save(engine, step)

    def settle(self) -> None:
        """Wait until the newest checkpoint is complete on disk. Raises on every rank where it cannot be, on any."""
        self.watchdog.alive("waiting for a checkpoint to be written", PATIENCE)
        self.saves.wait()

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
