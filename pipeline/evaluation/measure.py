"""One pass of a network over validation rows, summed by depth and by document."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pipeline.data.rows import IGNORED_LABEL
from pipeline.evaluation.depth import DepthSums
from pipeline.evaluation.document_sums import DocumentPart, DocumentSums, document_part
from pipeline.evaluation.halting import inference_halting, run_as
from pipeline.evaluation.ranks import answered
from pipeline.evaluation.row_batches import RowBatch, row_batches
from pipeline.evaluation.subject import Subject

LOSS = "loss"


@dataclass(frozen=True)
class _Sum:
    """A job: what the network says of a batch, summed."""

    batch: RowBatch
    end_of_document_id: int

    @torch.inference_mode()
    def run(self, subject: Subject) -> tuple[DepthSums, DocumentPart]:
        model = subject.model
        inputs, shift_labels = self.batch.inputs.to(model.device), self.batch.shift_labels.to(model.device)
        with run_as(model, inference_halting(model.config)):
            output = model(inputs, shift_labels=shift_labels)
        sums = DepthSums(model.config.max_passes)
        sums.add(output.nll, output.depths, shift_labels)
        counted = shift_labels != IGNORED_LABEL
        return sums, document_part(inputs, counted, output.nll.unsqueeze(0), self.end_of_document_id)


def measure(
    subject: Subject, rows: dict[str, int], batch_rows: int, post_batch: Callable[[int], None] = lambda rows: None
) -> dict[str, tuple[DepthSums, DocumentSums]]:
    """Sums over the first rows of each validation set, by its key: of each depth, and the loss of each document.

    The network halts as its own configuration says, and halted tokens are skipped where it allows that. No more logits
    are held at once than those of the model's `vocabulary_chunk_tokens`. Each batch is summed by itself, and the sums
    are added in the order of rows: the same on any number of ranks. `post_batch` is told how many rows a batch had.
    """
    end = subject.manifest.tokenizer.end_of_document_id
    sums = {key: DepthSums(subject.model.config.max_passes) for key in rows}
    documents = {key: DocumentSums([LOSS], end) for key in rows}
    for job, (of_batch, part) in answered(
        subject, (_Sum(batch, end) for batch in row_batches(subject, rows, batch_rows))
    ):
        key = job.batch.key
        sums[key] = sums[key] + of_batch
        documents[key].append(part)
        post_batch(len(job.batch))
    return {key: (sums[key], documents[key]) for key in rows}
