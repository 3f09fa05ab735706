"""Validation rows as they are read: some at a time, set after set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pipeline.data.rows import RowReader
from pipeline.evaluation.subject import Subject


@dataclass(frozen=True)
class RowBatch:
    """Rows of one set that follow each other."""

    key: str
    """The set's, in the manifest."""
    inputs: torch.Tensor
    """int64 [B, n]."""
    shift_labels: torch.Tensor
    """int64 [B, n], IGNORED_LABEL where nothing is predicted."""

    def __len__(self) -> int:
        return len(self.inputs)


def row_batches(subject: Subject, rows: dict[str, int], batch_rows: int) -> Iterator[RowBatch]:
    """The first rows of each set, so many as `rows` says by the set's key, in the order of sets and rows."""
    for key, count in rows.items():
        with RowReader(subject.shards, subject.manifest, key) as reader:
            for first in range(0, count, batch_rows):
                yield RowBatch(key, *reader.batch(range(first, min(first + batch_rows, count))))
