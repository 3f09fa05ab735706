"""Every evaluated token with what the network did on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.data.rows import IGNORED_LABEL
from pipeline.evaluation.halting import inference_halting, run_as
from pipeline.evaluation.ranks import answered
from pipeline.evaluation.row_batches import RowBatch, row_batches
from pipeline.evaluation.subject import Subject


@dataclass(frozen=True)
class Tokens:
    """N tokens that are read, in the order of rows; what comes next is what they predict."""

    ids: np.ndarray
    """int64 [N]."""
    next_ids: np.ndarray
    """int64 [N]."""
    sources: np.ndarray
    """int64 [N], place in `source_names`."""
    rows: np.ndarray
    """int64 [N], number of the row, counted over all sources."""
    positions: np.ndarray
    """int64 [N], place in the row."""
    depths: np.ndarray
    """int64 [N], 1..K."""
    gates: np.ndarray
    """float32 [N, gates]; NaN after the pass in which the token halted."""
    nll: np.ndarray
    """float32 [N], nats."""
    source_names: list[str]
    max_passes: int

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class _Look:
    """A job: what the network does on each token of a batch that is not padding, in the order of rows."""

    batch: RowBatch

    @torch.inference_mode()
    def run(self, subject: Subject) -> dict[str, np.ndarray]:
        model, labels = subject.model, self.batch.shift_labels
        with run_as(model, inference_halting(model.config)):
            output = model(self.batch.inputs.to(model.device), shift_labels=labels.to(model.device))
        depths = output.depths.cpu()
        passed = torch.arange(output.gates.shape[-1]) < depths.unsqueeze(-1)
        gates = output.gates.float().cpu().masked_fill(~passed, torch.nan)
        found = {"depths": depths, "gates": gates, "nll": output.nll.float().cpu()}
        return {name: values[labels != IGNORED_LABEL].numpy() for name, values in found.items()}


def look_at_tokens(
    subject: Subject, rows: dict[str, int], batch_rows: int, post_batch: Callable[[int], None] = lambda rows: None
) -> Tokens:
    """Run the network over the first `rows` rows of each validation set; padding is left out."""
    keys = list(rows)
    parts: dict[str, list[np.ndarray]] = {}
    row = 0
    for job, said in answered(subject, map(_Look, row_batches(subject, rows, batch_rows))):
        batch = job.batch
        inputs, labels = batch.inputs, batch.shift_labels
        read = {
            "ids": inputs,
            "next_ids": labels,
            "sources": torch.full_like(inputs, keys.index(batch.key)),
            "rows": torch.arange(row, row + len(batch)).unsqueeze(1).expand_as(inputs),
            "positions": torch.arange(inputs.shape[1]).expand_as(inputs),
        }
        wanted = labels != IGNORED_LABEL
        for name, values in [*((name, values[wanted].numpy()) for name, values in read.items()), *said.items()]:
            parts.setdefault(name, []).append(values)
        row += len(batch)
        post_batch(len(batch))
    arrays = {name: np.concatenate(values) for name, values in parts.items()}
    names = [str(subject.manifest.splits[key].source) for key in keys]
    return Tokens(**arrays, source_names=names, max_passes=subject.model.config.max_passes)
