"""Batches that a run passes over after it rolled back from a bad step: the order of the data with gaps.

passed_over.json in the run's folder lists ranges of data steps, global batches of the order of the data counted from 0.
A training step takes the next data step that lies in none of them: still a function of its number alone, whatever
checkpoint an attempt starts from. Without the file step k takes data step k.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.durable import write_text
from pipeline.errors import WorldError

FILE = "passed_over.json"


class PassedOver(BaseModel):
    """What a run passes over, and what for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data_steps: tuple[tuple[int, int], ...] = ()
    """First data step and one past the last of each range, in order, none touching another."""
    rolled_back_to: tuple[int, ...] = ()
    """Steps of the checkpoints that were gone back to, in the order of time."""

    def data_step(self, step: int) -> int:
        """The data step of training step `step`, both from 0."""
        for first, end in self.data_steps:
            if step >= first:
                step += end - first
        return step

    def rolled_back(self, kept: int, taken: int) -> PassedOver:
        """The same once the training has gone back from `taken` steps to the checkpoint of `kept` steps."""
        joined: list[tuple[int, int]] = []
        for first, end in sorted([*self.data_steps, (self.data_step(kept), self.data_step(taken - 1) + 1)]):
            if joined and first <= joined[-1][1]:
                joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
            else:
                joined.append((first, end))
        return PassedOver(data_steps=tuple(joined), rolled_back_to=(*self.rolled_back_to, kept))

    def write(self, folder: Path) -> None:
        """Into the run's folder, whole or not at all; rank 0 alone."""
        write_text(folder / FILE, self.model_dump_json(indent=2) + "\n")


def read_passed_over(folder: Path) -> PassedOver:
    """Of the run in `folder`; raises `WorldError` naming the file when it is none."""
    path = folder / FILE
    if not path.is_file():
        return PassedOver()
    try:
        return PassedOver.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = " ".join(str(error).split())
        raise WorldError(f"{path} does not hold the batches to pass over: {first}") from error
