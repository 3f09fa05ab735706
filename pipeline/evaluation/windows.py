"""The suite `windows`: loss over windows that overlap, so that no token is predicted with little before it.

Rows cut a text anywhere, and the first tokens after a cut have no context: their loss is the cut's, not the model's.
Here every token but the very first is predicted once, by a window in which at least `overlap` tokens stand before it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from rich.table import Table

from pipeline.data.rows import IGNORED_LABEL, RowReader
from pipeline.errors import UserError
from pipeline.evaluation.document_sums import DocumentPart, DocumentSums, document_part, joined
from pipeline.evaluation.halting import inference_halting, run_as
from pipeline.evaluation.identity import Identity
from pipeline.evaluation.measure import LOSS
from pipeline.evaluation.perplexity import bits_per_byte, perplexity
from pipeline.evaluation.progress import rows_progress
from pipeline.evaluation.ranks import answered
from pipeline.evaluation.subject import Subject
from pipeline.evaluation.suite import Suite
from pipeline.recipe import Recipe


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


class WindowLoss(_Entry):
    """Of one source, or of all."""

    tokens: int
    loss: float
    """Nats a token."""
    standard_error: float | None
    """By documents."""
    perplexity: float
    bits_per_byte: float


class Windows(_Entry):
    """The content of metrics.json."""

    schema_version: Literal[1] = 1
    identity: Identity
    window: int
    """Tokens of a window."""
    overlap: int
    """Tokens of it that the window before predicted."""
    overall: WindowLoss
    sources: dict[str, WindowLoss]
    seconds: float
    device: str


class WindowSuite(Suite):
    """Loss, perplexity and bits a byte, by source and overall."""

    name = "windows"
    found = Windows

    def settings(self, recipe: Recipe) -> dict[str, Any]:
        section, seq_len = recipe.evaluate.windows, recipe.tokenize.seq_len
        overlap = seq_len // 2 if section.overlap == "half" else section.overlap
        if overlap >= seq_len:
            raise UserError(f"evaluate.windows.overlap {overlap}: windows have {seq_len} tokens, and some must be new")
        return {"rows_per_source": section.rows_per_source, "overlap": overlap}

    def judge(self, subject: Subject, identity: Identity, output: Path) -> Windows:
        return measure_windows(subject, identity, identity.settings["overlap"])

    def named(self, found: Windows, subject: Subject) -> dict[str, float]:
        named = _flat(found.overall)
        for source, key in subject.source_keys.items():
            if source in found.sources:
                named |= {f"source/{key}/{name}": value for name, value in _flat(found.sources[source]).items()}
        return named

    def tables(self, found: Windows) -> list[Table]:
        title = f"windows of {found.window} tokens, {found.overlap} of them overlapping, {found.identity.checkpoint}"
        table = Table(title=title, title_justify="left")
        table.add_column("source")
        for name in ("tokens", "loss (nats)", "perplexity", "bits a byte"):
            table.add_column(name, justify="right")
        for name, entry in [*sorted(found.sources.items()), ("all", found.overall)]:
            sure = "" if entry.standard_error is None else f" ± {entry.standard_error:.4f}"
            numbers = f"{entry.loss:.4f}{sure}", f"{entry.perplexity:,.2f}", f"{entry.bits_per_byte:.4f}"
            table.add_row(name, f"{entry.tokens:,}", *numbers)
        return [table]


@dataclass(frozen=True)
class _Sum:
    """A job: the loss of the new tokens of some windows, by document."""

    key: str
    inputs: torch.Tensor
    """int64 [B, window]."""
    labels: torch.Tensor
    """int64 [B, window]."""
    rows: int
    """Of the set, that are done with these windows: all of them with the last."""
    end_of_document_id: int

    @torch.inference_mode()
    def run(self, subject: Subject) -> DocumentPart:
        model = subject.model
        with run_as(model, inference_halting(model.config)):
            output = model(self.inputs.to(model.device), shift_labels=self.labels.to(model.device))
        # Of overlapping windows only what is new, so that each document's tokens come in order.
        new = self.labels != IGNORED_LABEL
        read, nll = self.inputs[new].unsqueeze(0), output.nll[new.to(model.device)].view(1, 1, -1)
        return document_part(read, torch.ones_like(read, dtype=torch.bool), nll, self.end_of_document_id)


def measure_windows(subject: Subject, identity: Identity, overlap: int) -> Windows:
    """Predict every validation token of the first rows of each set once. Raises `UserError` where there are none."""
    began = time.monotonic()
    section, manifest = subject.recipe.evaluate.windows, subject.manifest
    rows = subject.validation_rows(section.rows_per_source)
    sums = {key: DocumentSums([LOSS], manifest.tokenizer.end_of_document_id) for key in rows}
    with rows_progress("windows", sum(rows.values())) as advance:
        for job, part in answered(subject, _jobs(subject, rows, overlap)):
            sums[job.key].append(part)
            advance(job.rows)
    sources: dict[str, WindowLoss] = {}
    total_bytes = 0.0
    told = {key: found for key, found in sums.items() if found.totals()[0].sum()}
    if not told:
        raise UserError(
            f"{subject.folder.shards} holds no validation text to predict: raise tokenize's validation_share"
        )
    for key, found in told.items():
        source = str(manifest.splits[key].source)
        count = manifest.splits[key].sources[source]
        text_bytes = int(found.totals()[0].sum()) * count.text_bytes / count.tokens
        total_bytes += text_bytes
        sources[source] = _window_loss(found, text_bytes)
    return Windows(
        identity=identity,
        window=manifest.seq_len,
        overlap=overlap,
        overall=_window_loss(joined(list(told.values())), total_bytes),
        sources=sources,
        seconds=round(time.monotonic() - began, 3),
        device=subject.device_name,
    )


def _jobs(subject: Subject, rows: dict[str, int], overlap: int) -> Iterator[_Sum]:
    manifest = subject.manifest
    window, end = manifest.seq_len, manifest.tokenizer.end_of_document_id
    for key, count in rows.items():
        with RowReader(subject.shards, manifest, key) as reader:
            text = reader.read(range(count)).reshape(-1)
            if count == reader.rows and reader.padding_tokens:
                text = text[: -reader.padding_tokens]
        predicted = told = 0
        for inputs, labels in batched(windows_of(text, window, overlap), subject.recipe.evaluate.windows.batch_rows):
            predicted += int((labels != IGNORED_LABEL).sum())
            done = count if predicted == len(text) - 1 else predicted // (window + 1)
            yield _Sum(key, inputs, labels, done - told, end)
            told = done


def windows_of(text: np.ndarray, window: int, overlap: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs and labels, int64 [window] each, that predict every token of `text`, int64 [N], but the first, once.

    Labels that an earlier window predicted, and those beyond the text's end, are ignored; the last window begins early
    enough to be full, where the text is long enough.
    """
    predicted = 1  # tokens that need no prediction any more
    while predicted < len(text):
        first = max(0, min(predicted - 1 - overlap, len(text) - 1 - window)) if predicted > 1 else 0
        inputs = torch.from_numpy(text[first : first + window].copy())
        labels = torch.from_numpy(text[first + 1 : first + 1 + window].copy())
        labels[: predicted - first - 1] = IGNORED_LABEL
        end = first + 1 + len(labels)
        missing = window - len(inputs)
        inputs = torch.nn.functional.pad(inputs, (0, missing))
        labels = torch.nn.functional.pad(labels, (0, window - len(labels)), value=IGNORED_LABEL)
        yield inputs, labels
        predicted = end


def batched(
    windows: Iterator[tuple[torch.Tensor, torch.Tensor]], size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Several windows as one batch, [B, window]."""
    waiting: list[tuple[torch.Tensor, torch.Tensor]] = []
    for pair in windows:
        waiting.append(pair)
        if len(waiting) == size:
            yield torch.stack([inputs for inputs, _ in waiting]), torch.stack([labels for _, labels in waiting])
            waiting = []
    if waiting:
        yield torch.stack([inputs for inputs, _ in waiting]), torch.stack([labels for _, labels in waiting])


def _window_loss(found: DocumentSums, text_bytes: float) -> WindowLoss:
    loss, tokens = found.losses()[LOSS], int(found.totals()[0].sum())
    return WindowLoss(
        tokens=tokens,
        loss=loss,
        standard_error=found.standard_error(LOSS),
        perplexity=perplexity(loss),
        bits_per_byte=bits_per_byte(loss, tokens, text_bytes),
    )


def _flat(entry: WindowLoss) -> dict[str, float]:
    named = {name: float(getattr(entry, name)) for name in ("loss", "perplexity", "bits_per_byte", "tokens")}
    return named if entry.standard_error is None else {**named, "loss_standard_error": entry.standard_error}
