"""One pass of a network over rows, summed by depth."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from pipeline.data.rows import IGNORED_LABEL, RowReader
from pipeline.evaluation.depth import DepthSums
from pipeline.evaluation.document_sums import DocumentSums
from pipeline.evaluation.halting import inference_halting, run_as

if TYPE_CHECKING:
    from pipeline.model import AdaPonderForCausalLM


@torch.inference_mode()
def measure(
    model: AdaPonderForCausalLM,
    reader: RowReader,
    rows: int,
    batch_rows: int,
    post_batch: Callable[[int], None] = lambda rows: None,
    documents: DocumentSums | None = None,
) -> DepthSums:
    """Sums over the first `rows` rows of a validation set, `batch_rows` at a time, on the model's device.

    The model must be in evaluation mode; it halts as its own configuration says, and halted tokens are skipped where it
    allows that. No more logits are held at once than those of the model's `vocabulary_chunk_tokens`. `post_batch` is
    told how many rows a batch had. `documents` gets the loss of the same rows by document.
    """
    sums = DepthSums(model.config.max_passes)
    if documents is not None:
        documents.begin()
    with run_as(model, inference_halting(model.config)):
        for first in range(0, rows, batch_rows):
            inputs, shift_labels = reader.batch(range(first, min(first + batch_rows, rows)))
            inputs, shift_labels = inputs.to(model.device), shift_labels.to(model.device)
            output = model(inputs, shift_labels=shift_labels)
            sums.add(output.nll, output.depths, shift_labels)
            if documents is not None:
                documents.add(inputs, shift_labels != IGNORED_LABEL, output.nll.unsqueeze(0))
            post_batch(len(inputs))
    return sums
