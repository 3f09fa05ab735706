"""A rank's micro-batches, step by step, with the next read ahead in the background."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import numpy as np
import torch

from pipeline.data.order import Shuffle, accumulation_steps, micro_batch_positions, row_at
from pipeline.data.rows import RowReader
from pipeline.errors import WorldError

MicroBatch = tuple[torch.Tensor, torch.Tensor]
"""Inputs and shifted labels, int64 [micro_batch, seq_len] each; see `RowReader.batch`."""
Step = list[MicroBatch] | WorldError | OSError
"""The micro-batches of a step, one an accumulation step, or why they cannot be read."""
ORDERED_TOGETHER = 4096
"""Positions of this rank whose rows are computed at once, for as many steps ahead as that gives: a hundred times
faster than step by step where a step has few rows."""
READ_TOGETHER = 64
"""Rows that are read at once, where a step has fewer those of several steps: it takes a third of the time."""


class TrainingBatches:
    """What one rank of a training run sees, for any step, in any order, however often it is asked.

    Holds two groups of steps at most, the one handed out and the next: a group is one step, or as many as have
    `READ_TOGETHER` rows. It alone may use `reader` until it is closed.
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
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._groups: dict[int, Future[list[Step]]] = {}

    def __enter__(self) -> TrainingBatches:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the background thread; the reader stays open."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def step(self, step: int) -> list[MicroBatch]:
        """The micro-batches of global step `step` (from 0), one an accumulation step.

        An error met while reading ahead is raised here, when its step is asked for.
        """
        number, within = divmod(step, self._steps_read)
        # The group after this one is begun as soon as this one is there.
        kept = {group: reading for group, reading in self._groups.items() if group in (number, number + 1)}
        self._groups = kept
        if number not in kept:
            kept[number] = self._thread.submit(self._read_group, number)
        found = kept[number].result()[within]
        if number + 1 not in kept:
            kept[number + 1] = self._thread.submit(self._read_group, number + 1)
        if isinstance(found, Exception):
            raise found
        return found

    def _read_group(self, number: int) -> list[Step]:
        steps = range(number * self._steps_read, (number + 1) * self._steps_read)
        try:
            return self._read_steps(steps)
        except (WorldError, OSError) as error:
            if len(steps) == 1:
                return [error]
        return [self._read_one(step) for step in steps]  # to tell which of them it is

    def _read_one(self, step: int) -> Step:
        try:
            return self._read_steps(range(step, step + 1))[0]
        except (WorldError, OSError) as error:
            return error

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
