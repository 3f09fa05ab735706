"""One network under many policies, on the same rows: losses by document, and the passes that each spends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch

from pipeline.data.rows import IGNORED_LABEL
from pipeline.evaluation.document_sums import DocumentPart, DocumentSums, document_part
from pipeline.evaluation.halting import run_as
from pipeline.evaluation.policies.imposed import LargestGoOn, RowCounts
from pipeline.evaluation.policies.keep_shares import keep_shares
from pipeline.evaluation.ranks import answered
from pipeline.evaluation.row_batches import RowBatch, row_batches
from pipeline.evaluation.subject import Subject

LEARNED = "learned"


@dataclass(frozen=True)
class Point:
    """A policy and how much it may spend."""

    policy: str
    mean_depth: float | None = None
    """Of a fixed policy, what its shares add up to."""
    threshold: float | None = None
    """Of the learned policy: tau; None is the network's own."""
    depth: int | None = None
    """Of truncated networks: the depth of every token."""

    @property
    def name(self) -> str:
        if self.threshold is not None:
            return f"{self.policy}, tau {self.threshold:g}"
        if self.depth is not None:
            return f"{self.policy} {self.depth}"
        return self.policy if self.mean_depth is None else f"{self.policy}, {self.mean_depth:.4f}"


@dataclass
class Spent:
    """What each point spends."""

    tokens: int = 0
    by_depth: dict[str, torch.Tensor] = field(default_factory=dict)
    """int64 [K]: tokens at depth 1, ..., K, by the point's name."""

    def mean_depth(self, name: str) -> float:
        counts = self.by_depth[name]
        return float((torch.arange(1, len(counts) + 1) * counts).sum()) / self.tokens


@dataclass(frozen=True)
class _Said:
    """What the network does on a batch at every point."""

    sums: DocumentPart
    by_depth: list[torch.Tensor]
    """int64 [K] of each point."""


@dataclass(frozen=True)
class _Run:
    """A job: a batch at every point."""

    batch: RowBatch
    points: list[Point]
    counts: list[list[list[int]] | None]
    """Of each point with fixed shares, how many tokens of each row are active in pass 2, ..., K."""
    end_of_document_id: int

    @torch.inference_mode()
    def run(self, subject: Subject) -> _Said:
        model = subject.model
        own, max_passes = model.config.halt_threshold, model.config.max_passes
        inputs, shift_labels = self.batch.inputs.to(model.device), self.batch.shift_labels.to(model.device)
        counted = shift_labels != IGNORED_LABEL
        losses, by_depth = [], []
        try:
            # A checkpoint of a phase without halting has gates, too.
            with run_as(model, "skip"):
                for point, counts in zip(self.points, self.counts, strict=True):
                    model.config.halt_threshold = own if point.threshold is None else point.threshold
                    depths = None if point.depth is None else torch.full_like(inputs, point.depth)
                    decide = None if counts is None else LargestGoOn(counted, counts)
                    output = model(inputs, shift_labels=shift_labels, imposed_depths=depths, decide=decide)
                    losses.append(output.nll)
                    by_depth.append(torch.bincount(output.depths[counted].cpu(), minlength=max_passes + 1)[1:])
        finally:
            model.config.halt_threshold = own
        return _Said(document_part(inputs, counted, torch.stack(losses), self.end_of_document_id), by_depth)


def measure_points(
    subject: Subject,
    points: list[Point],
    rows: dict[str, int],
    batch_rows: int,
    post_batch: Callable[[int], None] = lambda rows: None,
) -> tuple[DocumentSums, Spent]:
    """Run every point over the first rows of each validation set, on a network whose halted tokens can be skipped.

    Fixed policies take the counts of tokens that follow their shares over all rows, whatever the size of a batch.
    """
    end = subject.manifest.tokenizer.end_of_document_id
    sums, spent = DocumentSums([point.name for point in points], end), Spent()
    key: str | None = None
    for job, said in answered(subject, _jobs(subject, points, row_batches(subject, rows, batch_rows), end)):
        if job.batch.key != key:
            key = job.batch.key
            sums.begin()
        sums.append(said.sums)
        spent.tokens += int((job.batch.shift_labels != IGNORED_LABEL).sum())
        for point, found in zip(points, said.by_depth, strict=True):
            spent.by_depth[point.name] = spent.by_depth.get(point.name, torch.zeros_like(found)) + found
        post_batch(len(job.batch))
    return sums, spent


def _jobs(subject: Subject, points: list[Point], batches: Iterable[RowBatch], end: int) -> Iterator[_Run]:
    max_passes = subject.model.config.max_passes
    shared = [
        None if point.mean_depth is None else RowCounts(keep_shares(point.policy, point.mean_depth, max_passes))
        for point in points
    ]
    for batch in batches:
        tokens = (batch.shift_labels != IGNORED_LABEL).sum(dim=1).tolist()
        counts = [None if each is None else [each.next(of_row) for of_row in tokens] for each in shared]
        yield _Run(batch, points, counts, end)
