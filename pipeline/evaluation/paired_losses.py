"""Two networks on the same validation rows: loss and depth of each, and how sure their differences are.

A bootstrap over documents draws the same documents for both (`document_sums`), so a difference is surer than
either loss alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from pipeline.data.manifest import Manifest
from pipeline.data.rows import IGNORED_LABEL, RowReader
from pipeline.data.shard_source import ShardSource
from pipeline.errors import WorldError
from pipeline.evaluation.document_sums import DocumentSums, interval
from pipeline.evaluation.halting import inference_halting, run_as

if TYPE_CHECKING:
    from pipeline.model import AdaPonderForCausalLM

_COLUMNS = ["loss a", "loss b", "depth a", "depth b"]


class Estimate(BaseModel):
    """A mean over tokens, and where 95 % of those of documents drawn again lie; None where there is one document."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float
    interval: tuple[float, float] | None


class PairedLosses(BaseModel):
    """On the rows of one source, or of all. Losses in nats a token, depths in passes a token."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: int
    documents: int
    tokens: int
    """Predicted ones; padding is none."""
    loss_a: Estimate
    loss_b: Estimate
    loss_difference: Estimate
    """B's less A's: below zero B is better."""
    depth_a: Estimate
    depth_b: Estimate
    depth_difference: Estimate


@torch.inference_mode()
def paired_losses(
    a: AdaPonderForCausalLM,
    b: AdaPonderForCausalLM,
    shards: ShardSource,
    manifest: Manifest,
    rows: dict[str, int],
    *,
    batch_rows: int,
    draws: int,
    seed: int,
    post_batch: Callable[[int], None] = lambda rows: None,
) -> tuple[PairedLosses, dict[str, PairedLosses]]:
    """Over all sets, and by source. rows: how many of each validation set, by its key; the first ones.

    Both networks are in evaluation mode and skip halted tokens where they may. Raises `WorldError` for a loss that is
    not a number.
    """
    end = manifest.tokenizer.end_of_document_id
    whole, sources = DocumentSums(_COLUMNS, end), {}
    for key, count in rows.items():
        if not count:
            continue
        of_source = DocumentSums(_COLUMNS, end)
        whole.begin()
        of_source.begin()
        with RowReader(shards, manifest, key) as reader:
            for first in range(0, count, batch_rows):
                inputs, labels = reader.batch(range(first, min(first + batch_rows, count)))
                (nll_a, depths_a), (nll_b, depths_b) = (_run(model, inputs, labels) for model in (a, b))
                columns = torch.stack([nll_a, nll_b, depths_a.float(), depths_b.float()])
                for sums in (whole, of_source):
                    sums.add(inputs, labels != IGNORED_LABEL, columns)
                post_batch(len(inputs))
        sources[str(manifest.splits[key].source)] = (count, of_source)
    by_source = {
        name: _estimated(sums, count, draws, seed) for name, (count, sums) in sources.items() if sums.totals()[0].size
    }
    return _estimated(whole, sum(rows.values()), draws, seed), by_source


def _run(model: AdaPonderForCausalLM, inputs: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    with run_as(model, inference_halting(model.config)):
        output = model(inputs.to(model.device), shift_labels=labels.to(model.device))
    counted = labels != IGNORED_LABEL
    nll = output.nll.float().cpu()
    if not torch.isfinite(nll[counted]).all():
        raise WorldError("a loss is not a number: one of the networks is of no use")
    return nll, output.depths.cpu()


def _estimated(sums: DocumentSums, rows: int, draws: int, seed: int) -> PairedLosses:
    tokens, _ = sums.totals()
    values = list(sums.losses().values())
    drawn = sums.bootstrap(draws, seed) if len(tokens) > 1 else None

    def estimate(value: float, of: Callable[[np.ndarray], np.ndarray]) -> Estimate:
        return Estimate(value=value, interval=None if drawn is None else interval(of(drawn)))

    return PairedLosses(
        rows=rows,
        documents=len(tokens),
        tokens=int(tokens.sum()),
        loss_a=estimate(values[0], lambda draws: draws[:, 0]),
        loss_b=estimate(values[1], lambda draws: draws[:, 1]),
        loss_difference=estimate(values[1] - values[0], lambda draws: draws[:, 1] - draws[:, 0]),
        depth_a=estimate(values[2], lambda draws: draws[:, 2]),
        depth_b=estimate(values[3], lambda draws: draws[:, 3]),
        depth_difference=estimate(values[3] - values[2], lambda draws: draws[:, 3] - draws[:, 2]),
    )
