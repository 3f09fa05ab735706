"""The suite `validation`: loss, perplexity, bits a byte and depth on the validation sets of the run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from pipeline.errors import UserError, WorldError
from pipeline.evaluation.depth import DepthSums
from pipeline.evaluation.document_sums import DocumentSums, joined
from pipeline.evaluation.identity import Identity
from pipeline.evaluation.measure import LOSS, measure
from pipeline.evaluation.metrics import Measured, Metrics, bytes_of, measured
from pipeline.evaluation.plots import write_plots
from pipeline.evaluation.progress import rows_progress
from pipeline.evaluation.subject import Subject
from pipeline.evaluation.suite import Suite
from pipeline.recipe import Recipe

VALIDATION = "validation"


class Validation(Suite):
    """In fp32 with the training's master weights, whatever the training's precision."""

    name = VALIDATION
    found = Metrics

    def settings(self, recipe: Recipe) -> dict[str, Any]:
        return {"rows_per_source": recipe.evaluate.rows_per_source}

    def judge(self, subject: Subject, identity: Identity, output: Path) -> Metrics:
        metrics = validate(subject, identity)
        write_plots(output, metrics)
        return metrics

    def named(self, found: Metrics, subject: Subject) -> dict[str, float]:
        return found.flat(subject.source_keys)

    def tables(self, found: Metrics) -> list[Table]:
        return [_table(found)]


def validate(subject: Subject, identity: Identity) -> Metrics:
    """Measure a network on the first rows of every validation set of the run's shards.

    Raises `UserError` when the shards hold no validation text, `WorldError` when they cannot be read or the loss is
    not a number.
    """
    began = time.monotonic()
    model, section, manifest = subject.model, subject.recipe.evaluate, subject.manifest
    rows = subject.validation_rows(section.rows_per_source)
    with rows_progress("evaluate", sum(rows.values())) as advance:
        measured_sets = measure(subject, rows, section.batch_rows, advance)
    sources: dict[str, Measured] = {}
    total, text_bytes = DepthSums(model.config.max_passes), 0.0
    told: list[DocumentSums] = []
    for key, (found, documents) in measured_sets.items():
        split = manifest.splits[key]
        if not found.total_tokens:  # a set of a single token, or none, predicts nothing
            continue
        if not torch.isfinite(found.nll).all():
            raise WorldError(f"the loss of {identity.checkpoint} on {key} is not a number: the checkpoint is of no use")
        source = str(split.source)
        of_source = bytes_of(found.total_tokens, split.sources[source])
        sources[source] = measured(found, rows[key], of_source, documents.standard_error(LOSS))
        told.append(documents)
        total, text_bytes = total + found, text_bytes + of_source
    if not sources:
        raise UserError(
            f"{subject.folder.shards} holds no validation text to predict: raise tokenize's validation_share"
        )
    return Metrics(
        identity=identity,
        max_passes=model.config.max_passes,
        halting=model.config.halting,
        overall=measured(total, sum(rows.values()), text_bytes, joined(told).standard_error(LOSS)),
        sources=sources,
        seconds=round(time.monotonic() - began, 3),
        device=subject.device_name,
    )


def _table(metrics: Metrics) -> Table:
    identity = metrics.identity
    table = Table(title=f"{identity.suite}, {identity.checkpoint}", title_justify="left")
    table.add_column("source")
    for name in ("tokens", "loss (nats)", "perplexity", "bits a byte", "mean depth"):
        table.add_column(name, justify="right")
    for number, (name, found) in enumerate([*sorted(metrics.sources.items()), ("all", metrics.overall)]):
        if number == len(metrics.sources):
            table.add_section()
        sure = "" if found.standard_error is None else f" ± {found.standard_error:.4f}"
        numbers = (
            f"{found.loss:.4f}{sure}",
            f"{found.perplexity:,.2f}",
            f"{found.bits_per_byte:.4f}",
            f"{found.mean_depth:.3f}",
        )
        table.add_row(name, f"{found.tokens:,}", *numbers)
    return table
