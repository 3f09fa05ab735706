"""One network under many policies, on the same rows: losses by document, and the passes that each spends."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from pipeline.data.rows import IGNORED_LABEL
from pipeline.evaluation.document_sums import DocumentSums
from pipeline.evaluation.halting import inference_halting, run_as
from pipeline.evaluation.policies.imposed import RowCounts, depths_by_shares
from pipeline.evaluation.policies.keep_shares import keep_shares

if TYPE_CHECKING:
    from pipeline.model import AdaPonderForCausalLM

LEARNED = "learned"

Rows = tuple[torch.Tensor, torch.Tensor]
"""Inputs and shift labels, int64 [B, n] each."""


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


@torch.inference_mode()
def measure_points(
    model: AdaPonderForCausalLM,
    points: list[Point],
    sets: Iterable[Iterable[Rows]],
    end_of_document_id: int,
    post_batch: Callable[[int], None] = lambda rows: None,
) -> tuple[DocumentSums, Spent]:
    """Run every point over the sets' rows, in evaluation mode on the model's device.

    Fixed policies take the counts of tokens that follow their shares over all rows, whatever the size of a batch.
    """
    max_passes = model.config.max_passes
    sums, spent = DocumentSums([point.name for point in points], end_of_document_id), Spent()
    counts = {
        point.name: RowCounts(keep_shares(point.policy, point.mean_depth, max_passes))
        for point in points
        if point.mean_depth is not None
    }
    own = model.config.halt_threshold
    halting = inference_halting(model.config)
    try:
        for rows in sets:
            sums.begin()
            for inputs, shift_labels in rows:
                inputs, shift_labels = inputs.to(model.device), shift_labels.to(model.device)
                counted = shift_labels != IGNORED_LABEL
                spent.tokens += int(counted.sum())
                losses = []
                for point in points:
                    with run_as(model, halting):
                        model.config.halt_threshold = own if point.threshold is None else point.threshold
                        imposed = _imposed(model, point, inputs, counted, counts.get(point.name))
                        output = model(inputs, shift_labels=shift_labels, imposed_depths=imposed)
                    losses.append(output.nll)
                    found = torch.bincount(output.depths[counted].cpu(), minlength=max_passes + 1)[1:]
                    spent.by_depth[point.name] = spent.by_depth.get(point.name, torch.zeros_like(found)) + found
                sums.add(inputs, counted, torch.stack(losses))
                post_batch(len(inputs))
    finally:
        model.config.halt_threshold = own
    return sums, spent


def _imposed(
    model: AdaPonderForCausalLM, point: Point, inputs: torch.Tensor, counted: torch.Tensor, counts: RowCounts | None
) -> torch.Tensor | None:
    """Depths of the tokens; None where the gates decide."""
    if point.depth is not None:
        return torch.full_like(inputs, point.depth)
    if counts is None:
        return None
    return depths_by_shares(model, inputs, counted, [counts.next(int(tokens)) for tokens in counted.sum(dim=1)])
