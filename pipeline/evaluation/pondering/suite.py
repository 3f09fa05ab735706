"""The suite `depth`: on which tokens the passes are spent."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from pipeline.durable import write_text
from pipeline.evaluation.identity import Identity
from pipeline.evaluation.pondering.found import GateHistogram, Pondering
from pipeline.evaluation.pondering.groups import by_depth, by_frequency, by_kind, by_position, by_source
from pipeline.evaluation.pondering.page import depth_page
from pipeline.evaluation.pondering.plots import write_plots
from pipeline.evaluation.pondering.token_kinds import KINDS, kinds_of
from pipeline.evaluation.pondering.tokens import Tokens, look_at_tokens
from pipeline.evaluation.progress import rows_progress
from pipeline.evaluation.subject import Subject
from pipeline.evaluation.suite import Suite
from pipeline.model.flops import inference_work, mean_keys
from pipeline.recipe import Recipe

PAGE_NAME = "depth.html"
GATE_EDGES = (0.0, 1e-5, 1e-4, 1e-3, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.99, 1.0)


class DepthSuite(Suite):
    """Depth by source, position, frequency and kind of token, the gates, and a page of the extremes."""

    name = "depth"
    found = Pondering

    def settings(self, recipe: Recipe) -> dict[str, Any]:
        return {"rows_per_source": recipe.evaluate.depth.rows_per_source}

    def judge(self, subject: Subject, identity: Identity, output: Path) -> Pondering:
        began = time.monotonic()
        section = subject.recipe.evaluate.depth
        rows = subject.validation_rows(section.rows_per_source)
        with rows_progress("depth", sum(rows.values())) as advance:
            tokens = look_at_tokens(subject, rows, section.batch_rows, advance)
        found = summarised(subject, identity, tokens, began)
        write_plots(output, found)
        write_text(output / PAGE_NAME, depth_page(tokens, subject.tokenizer, f"Depth at step {identity.step:,}"))
        return found

    def named(self, found: Pondering, subject: Subject) -> dict[str, float]:
        named = {"mean_depth": found.mean_depth, "multiply_accumulates": found.multiply_accumulates["total"]}
        full = found.full_depth_multiply_accumulates["total"]
        named["share_of_full_depth"] = found.multiply_accumulates["total"] / full
        if found.depth_and_loss is not None:
            named["rank_correlation_with_loss"] = found.depth_and_loss
        for group in found.by_kind:
            named[f"kind/{group.name.replace(' ', '_')}/mean_depth"] = group.mean_depth
        for gate in found.gates:
            named[f"gate_after_pass_{gate.after_pass}/mean"] = gate.mean
        return named

    def tables(self, found: Pondering) -> list[Table]:
        table = Table(title=f"depth, {found.identity.checkpoint}", title_justify="left")
        table.add_column("tokens")
        for name in ("count", "mean depth", "loss (nats)"):
            table.add_column(name, justify="right")
        for title, groups in (
            ("depth", found.by_depth),
            ("", found.by_source),
            ("rank of frequency", found.by_frequency),
            ("", found.by_kind),
        ):
            for group in groups:
                name = f"{title} {group.name}".strip()
                table.add_row(name, f"{group.tokens:,}", f"{group.mean_depth:.3f}", f"{group.loss:.4f}")
            table.add_section()
        return [table]


def summarised(subject: Subject, identity: Identity, tokens: Tokens, began: float) -> Pondering:
    """All numbers, of tokens that were looked at since `began` (monotonic seconds)."""
    config, keys = subject.model.config, mean_keys(subject.manifest.seq_len)
    histogram = np.bincount(tokens.depths, minlength=config.max_passes + 1)[1:].tolist()
    full = [0.0] * (config.max_passes - 1) + [1.0]
    kinds = np.array(kinds_of(subject.tokenizer, range(int(tokens.ids.max()) + 1), _end_of_document(subject)))
    return Pondering(
        identity=identity,
        max_passes=config.max_passes,
        halt_threshold=config.halt_threshold,
        tokens=len(tokens),
        mean_depth=float(tokens.depths.mean()),
        active_shares=[sum(histogram[i:]) / len(tokens) for i in range(config.max_passes)],
        multiply_accumulates=inference_work(config, keys, histogram).as_dict(),
        full_depth_multiply_accumulates=inference_work(config, keys, full).as_dict(),
        depth_and_loss=_rank_correlation(tokens.depths, tokens.nll),
        by_depth=by_depth(tokens),
        by_source=by_source(tokens),
        by_position=by_position(tokens, subject.manifest.seq_len),
        by_frequency=by_frequency(tokens),
        by_kind=by_kind(tokens, KINDS, kinds),
        gates=[_histogram(number, tokens.gates[:, number]) for number in range(tokens.gates.shape[1])],
        seconds=round(time.monotonic() - began, 3),
        device=subject.device_name,
    )


def _end_of_document(subject: Subject) -> int:
    return subject.manifest.tokenizer.end_of_document_id


def _histogram(number: int, gates: np.ndarray) -> GateHistogram:
    active = gates[~np.isnan(gates)]
    counts, _ = np.histogram(active, GATE_EDGES)
    return GateHistogram(
        after_pass=number + 1,
        tokens=len(active),
        edges=list(GATE_EDGES),
        counts=counts.tolist(),
        mean=float(active.mean(dtype=np.float64)) if len(active) else 0.0,
    )


def _rank_correlation(depths: np.ndarray, nll: np.ndarray) -> float | None:
    """Spearman's, equal values at their mean rank."""
    if len(np.unique(depths)) < 2 or len(np.unique(nll)) < 2:
        return None
    return float(np.corrcoef(_ranks(depths), _ranks(nll))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[place]
