"""Every evaluated token with what the network did on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.data.rows import IGNORED_LABEL, RowReader
from pipeline.evaluation.halting import inference_halting, run_as
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


@torch.inference_mode()
def look_at_tokens(
    subject: Subject, rows: dict[str, int], batch_rows: int, post_batch: Callable[[int], None] = lambda rows: None
) -> Tokens:
    """Run the network over the first `rows` rows of each validation set; padding is left out."""
    model = subject.model
    parts: dict[str, list[np.ndarray]] = {}
    names: list[str] = []
    row = 0
    with run_as(model, inference_halting(model.config)):
        for key, count in rows.items():
            names.append(str(subject.manifest.splits[key].source))
            with RowReader(subject.shards, subject.manifest, key) as reader:
                for first in range(0, count, batch_rows):
                    inputs, labels = reader.batch(range(first, min(first + batch_rows, count)))
                    output = model(inputs.to(model.device), shift_labels=labels.to(model.device))
                    wanted = labels != IGNORED_LABEL
                    places = torch.arange(inputs.shape[1]).expand_as(inputs)
                    numbers = torch.arange(row, row + len(inputs)).unsqueeze(1).expand_as(inputs)
                    depths = output.depths.cpu()
                    passed = torch.arange(output.gates.shape[-1]) < depths.unsqueeze(-1)
                    gates = output.gates.float().cpu().masked_fill(~passed, torch.nan)
                    found = {
                        "ids": inputs,
                        "next_ids": labels,
                        "sources": torch.full_like(inputs, len(names) - 1),
                        "rows": numbers,
                        "positions": places,
                        "depths": depths,
                        "gates": gates,
                        "nll": output.nll.float().cpu(),
                    }
                    for name, values in found.items():
                        parts.setdefault(name, []).append(values[wanted].numpy())
                    row += len(inputs)
                    post_batch(len(inputs))
    arrays = {name: np.concatenate(values) for name, values in parts.items()}
    return Tokens(**arrays, source_names=names, max_passes=model.config.max_passes)
