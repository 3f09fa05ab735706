"""The model card's section of results: what the evaluation of the checkpoint found, and of its baselines.

Every number comes from an evaluation's metrics.json. Without one of this checkpoint there is nothing to compare.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pipeline.evaluation.metrics import Measured, Metrics
from pipeline.release.provenance import BaselineResult

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|!~])")


def results(metrics: Metrics | None, baselines: Sequence[BaselineResult], dtype: str, figure: str | None) -> str:
    """metrics: the evaluation of this checkpoint, where there was one; figure: a file beside the card."""
    if metrics is None:
        return "This checkpoint was not evaluated."
    rounded = "" if dtype == "float32" else f" (weights rounded to {dtype} for release)"
    lines = [
        f"On the {metrics.identity.suite} set above ({metrics.overall.rows:,} rows, {metrics.overall.tokens:,} "
        f"predicted tokens), in fp32 with the training's own weights{rounded}:",
        "",
        "| source | tokens | loss (nats a token) | perplexity | bits a byte | mean depth |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    rows: list[tuple[str, Measured | BaselineResult]] = [*sorted(metrics.sources.items()), ("all", metrics.overall)]
    rows += [(f"all, by {_plain(each.name)}", each) for each in baselines]
    for name, found in rows:
        numbers = f"{found.loss:.4f} | {found.perplexity:,.2f} | {found.bits_per_byte:.4f} | {found.mean_depth:.3f}"
        lines.append(f"| {name} | {found.tokens:,} | {numbers} |")
    if baselines:
        lines += ["", " ".join(_told(each, metrics) for each in baselines)]
    lines += ["", "| depth (passes) | share of the tokens | loss (nats a token) |", "| ---: | ---: | ---: |"]
    for entry in metrics.overall.by_depth:
        loss = "-" if entry.loss is None else f"{entry.loss:.4f}"
        lines.append(f"| {entry.depth} | {entry.tokens / metrics.overall.tokens:.1%} | {loss} |")
    if figure is not None:
        lines += ["", f"![Share of the validation tokens at each depth]({figure})"]
    return "\n".join(lines)


def _told(baseline: BaselineResult, metrics: Metrics) -> str:
    """Which network a baseline is, and what does not compare."""
    told = f"{_plain(baseline.name)} is {_plain(baseline.run)}, step {baseline.step:,}"
    if baseline.manifest_hash != metrics.identity.manifest_hash:
        return f"{told}, evaluated on other shards: its numbers are of other text."
    if baseline.settings != metrics.identity.settings:
        return f"{told}, evaluated on another number of rows."
    return f"{told}, on the same rows."


def _plain(name: str) -> str:
    """A name as text and nothing else, whatever it holds."""
    return _MARKDOWN.sub(r"\\\1", " ".join(name.split()))
