"""A rank's micro-batches, step by step, with the next step's read ahead in the background."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch

from pipeline.data.order import accumulation_steps, micro_batch_positions, row_at
from pipeline.data.rows import RowReader

MicroBatch = tuple[torch.Tensor, torch.Tensor]
"""Inputs and shifted labels, int64 [micro_batch, seq_len] each; see `RowReader.batch`."""


class TrainingBatches:
    """What one rank of a training run sees, for any step, in any order, however often it is asked.

    Holds two steps at most: the one handed out and the next. It alone may use `reader` until it is closed.
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
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._ahead: tuple[int, Future[list[MicroBatch]]] | None = None

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
        if self._ahead is not None and self._ahead[0] == step:
            reading = self._ahead[1]
        else:
            reading = self._thread.submit(self._read_step, step)
        self._ahead = None
        batches = reading.result()
        self._ahead = (step + 1, self._thread.submit(self._read_step, step + 1))
        return batches

    def _read_step(self, step: int) -> list[MicroBatch]:
        return [self._read_micro_batch(step, index) for index in range(self.accumulation_steps)]

    def _read_micro_batch(self, step: int, accumulation_index: int) -> MicroBatch:
        positions = micro_batch_positions(
            step, accumulation_index, self._rank, self._world_size, self._micro_batch, self._global_batch
        )
        return self._reader.batch(row_at(positions, self._reader.rows, self._seed, self._manifest_hash))
