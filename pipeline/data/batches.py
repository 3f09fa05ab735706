"""A rank's micro-batches, step by step, with the next read ahead in the background."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import Future
from queue import SimpleQueue
from types import TracebackType

import numpy as np
import torch

from pipeline.data.order import Shuffle, accumulation_steps, micro_batch_positions, row_at
from pipeline.data.rows import RowReader
from pipeline.errors import WorldError

MicroBatch = tuple[torch.Tensor, torch.Tensor]
"""Inputs and shifted labels, int64 [micro_batch, seq_len] each; see `RowReader.batch`."""
Step = list[MicroBatch]
"""The micro-batches of a step, one an accumulation step."""
ORDERED_TOGETHER = 4096
"""Positions of this rank whose rows are computed at once, for as many steps ahead as that gives: a hundred times
faster than step by step where a step has few rows."""
READ_TOGETHER = 64
"""Rows that are read at once, where a step has fewer those of several steps: it takes a third of the time."""
_END_SECONDS = 1.0
"""How long an end by an error waits for what is just being read: nearly always enough for a disk."""


class TrainingBatches:
    """What one rank of a training run sees, for any step, in any order, however often it is asked.

    Holds two groups of steps at most, the one handed out and the next: a group is one step, or as many as have
    `READ_TOGETHER` rows. It alone may use `reader` until it is closed. The first error ends the reading: its step and
    all that were not read before it raise it.
    """

    def __init__(
        self,
        reader: RowReader,
        seed: int,
        manifest_hash: str,
        rank: int,
        world_size: int,
        micro_batch: int,
        global_batch: int,
        shuffle: Shuffle = "rows",
    ) -> None:
        """Raises `UserError` where the global batch does not divide among the ranks."""
        self.accumulation_steps = accumulation_steps(micro_batch, global_batch, world_size)
        """Micro-batches in each step."""
        self._reader = reader
        self._seed = seed
        self._manifest_hash = manifest_hash
        self._rank = rank
        self._world_size = world_size
        self._micro_batch = micro_batch
        self._global_batch = global_batch
        self._shuffle: Shuffle = shuffle
        step_rows = self.accumulation_steps * micro_batch
        self._steps_read = max(1, READ_TOGETHER // step_rows)
        self._steps_ordered = max(1, ORDERED_TOGETHER // step_rows)
        self._ordered: tuple[int, np.ndarray] | None = None
        self._groups: dict[int, list[Future[Step]]] = {}
        self._asked: SimpleQueue[tuple[int, list[Future[Step]]] | None] = SimpleQueue()
        self._closed = threading.Event()
        # Not of an executor: the process waits for those at its end, for a store that does not answer a minute or more.
        self._thread = threading.Thread(target=self._read_asked, name="batches", daemon=True)
        self._thread.start()

    def __enter__(self) -> TrainingBatches:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error nobody wants what is being read. Should it come after the reader was closed, it is thrown away.
        self._end(_END_SECONDS if error is not None else None)

    def close(self) -> None:
        """End the background thread; the reader stays open."""
        self._end(None)

    def _end(self, seconds: float | None) -> None:
        self._closed.set()
        self._asked.put(None)
        self._thread.join(seconds)

    def step(self, step: int) -> Step:
        """The micro-batches of global step `step` (from 0), one an accumulation step.

        An error met while reading ahead is raised here, when its step is asked for.
        """
        number, within = divmod(step, self._steps_read)
        self._groups = {group: steps for group, steps in self._groups.items() if group in (number, number + 1)}
        found = self._begun(number)[within].result()
        # The group after this one is begun as soon as this one is there, and not after an error.
        self._begun(number + 1)
        return found

    def wait(self) -> None:
        """Wait until all that was begun is read, or failed."""
        for steps in self._groups.values():
            for step in steps:
                step.exception()

    def _begun(self, number: int) -> list[Future[Step]]:
        """The steps of a group; its reading is begun if it was not."""
        if number not in self._groups:
            self._go_on()
            self._groups[number] = [Future() for _ in range(self._steps_read)]
            self._asked.put((number, self._groups[number]))
        return self._groups[number]

    def _go_on(self) -> None:
        if self._closed.is_set():
            raise RuntimeError("these batches are closed")

    def _read_asked(self) -> None:
        """What the background thread does: group by group, until the first error."""
        failure: Exception | None = None
        while (asked := self._asked.get()) is not None:
            number, steps = asked
            try:
                if failure is None:
                    self._read_group(number, steps)
            except Exception as error:  # raised where the step is asked for
                failure = error
            for step in steps:
                if failure is not None and not step.done():
                    step.set_exception(failure)

    def _read_group(self, number: int, waiting: list[Future[Step]]) -> None:
        steps = range(number * self._steps_read, (number + 1) * self._steps_read)
        self._go_on()
        if len(steps) > 1 and self._reader.is_here(np.concatenate([self._rows_of(step) for step in steps])):
            with contextlib.suppress(WorldError, OSError):  # met again below, where it shows which step it is
                for future, found in zip(waiting, self._read_steps(steps), strict=True):
                    future.set_result(found)
                return
        # Where files have to be fetched first, a step must not wait for those of all steps of its group.
        for step, future in zip(steps, waiting, strict=True):
            self._go_on()
            future.set_result(self._read_steps(range(step, step + 1))[0])

    def _read_steps(self, steps: range) -> list[Step]:
        # All at once, so that it comes from disk or network together.
        inputs, shift_labels = self._reader.batch(np.concatenate([self._rows_of(step) for step in steps]))
        size = self._micro_batch
        batches = list(zip(inputs.split(size), shift_labels.split(size), strict=True))
        each = self.accumulation_steps
        return [batches[first : first + each] for first in range(0, len(batches), each)]

    def _rows_of(self, step: int) -> np.ndarray:
        """This rank's rows of a step, int64 [accumulation_steps * micro_batch]."""
        block, within = divmod(step, self._steps_ordered)
        if self._ordered is None or self._ordered[0] != block:
            first = block * self._steps_ordered
            positions = np.stack([self._positions(first + number) for number in range(self._steps_ordered)])
            rows = row_at(
                positions, self._reader.rows, self._seed, self._manifest_hash, self._shuffle, self._reader.chunk_rows
            )
            self._ordered = block, rows
        return self._ordered[1][within]

    def _positions(self, step: int) -> np.ndarray:
        return np.concatenate(
            [
                micro_batch_positions(step, index, self._rank, self._world_size, self._micro_batch, self._global_batch)
                for index in range(self.accumulation_steps)
            ]
        )
