"""`adaponder compare`: two networks side by side, on the same prompts and on the same validation rows."""

from __future__ import annotations

import dataclasses
import html
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pipeline.console import console, error_console
from pipeline.data.manifest import Manifest, manifest_hash, read_manifest
from pipeline.data.shard_source import LocalShards, ShardSource
from pipeline.durable import write_text
from pipeline.errors import UserError
from pipeline.evaluation.generation import Asked, sample_json
from pipeline.evaluation.paired_losses import Estimate, PairedLosses, paired_losses
from pipeline.evaluation.sample import Sample, render
from pipeline.evaluation.standing_network import StandingNetwork, open_network
from pipeline.evaluation.tinted_page import legend, table, tinted_page, tinted_text

_HEAD = ("", "A", "B", "B - A", "95 % of B - A")


@dataclass(frozen=True)
class Judged:
    """On which rows, and how surely."""

    rows_per_source: int
    batch_rows: int
    draws: int
    seed: int
    shards: Path | None
    """Where the rows lie, if neither network's run says so."""


@dataclass(frozen=True)
class Comparison:
    """Two networks and what they did."""

    a: StandingNetwork
    b: StandingNetwork
    overall: PairedLosses
    sources: dict[str, PairedLosses]
    texts: list[tuple[Sample, Sample]]

    @property
    def max_passes(self) -> int:
        """Of the deeper network: a depth has the same colour on both sides."""
        return max(self.a.model.config.max_passes, self.b.model.config.max_passes)


def compare_and_tell(
    where: tuple[str, str], runs: Path | None, asked: Asked, judged: Judged, page: Path | None, as_json: bool
) -> None:
    """Compare and print; `page` gets the same as HTML.

    Raises `UserError` where the two do not share tokenizer and shards, or no shards are found.
    """
    a, b = (open_network(one, runs) for one in where)
    require_comparable(a, b)
    shards, manifest, rows = _validation(a, b, judged)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("rows")
    with Progress(*columns, TimeRemainingColumn(), console=error_console, transient=True) as progress:
        task = progress.add_task("compare", total=sum(rows.values()))
        overall, sources = paired_losses(
            *(a.model, b.model, shards, manifest, rows),
            batch_rows=judged.batch_rows,
            draws=judged.draws,
            seed=judged.seed,
            post_batch=lambda n: progress.advance(task, n),
        )
    texts = list(zip(asked.of(a), asked.of(b), strict=True))
    found = Comparison(a, b, overall, sources, texts)
    if page is not None:
        write_text(page, comparison_page(found, asked, judged))
    if as_json:
        print(json.dumps(comparison_json(found, asked, judged), ensure_ascii=False, indent=2))
        return
    _tell(found, asked, judged)
    if page is not None:
        console.print(f"\ncompare: {page}")


def require_comparable(a: StandingNetwork, b: StandingNetwork) -> None:
    """`UserError` where tokenizer or shards differ."""
    for what, of_a, of_b in (
        ("tokenizer", a.tokenizer_sha256, b.tokenizer_sha256),
        ("shards", a.manifest_hash, b.manifest_hash),
    ):
        if of_a != of_b:
            raise UserError(
                f"{a.name} and {b.name} have different {what} ({of_a[:12]} and {of_b[:12]}): their losses are of "
                "different tokens, and cannot be compared"
            )


def _validation(a: StandingNetwork, b: StandingNetwork, judged: Judged) -> tuple[ShardSource, Manifest, dict[str, int]]:
    """Shards, manifest, and how many rows of each validation set."""
    if judged.shards is not None:
        folder, shards = judged.shards, LocalShards(judged.shards)
        told = f"--shards {folder}"
    else:
        run = a.run or b.run
        if run is None:
            raise UserError(f"{a.name} and {b.name} lie outside their runs: say by --shards where their shards are")
        shards = run.open_shards()
        folder = run.shards
        told = str(folder)
    if not (folder / "manifest.json").is_file():
        raise UserError(f"{told} holds no manifest.json: these are no finished shards")
    manifest = read_manifest(folder)
    if (found := manifest_hash(manifest)) != a.manifest_hash:
        raise UserError(
            f"{told} has manifest {found[:12]}, but the networks were trained on manifest {a.manifest_hash[:12]}: say "
            "by --shards where theirs are"
        )
    rows = {
        key: min(judged.rows_per_source, split.rows)
        for key, split in manifest.splits.items()
        if split.split == "validation"
    }
    if not sum(rows.values()):
        raise UserError(f"{told} holds no validation rows: there is nothing to compare losses on")
    return shards, manifest, rows


def comparison_json(found: Comparison, asked: Asked, judged: Judged) -> dict[str, Any]:
    """For machines."""
    return {
        "a": {"name": found.a.name, "step": found.a.step},
        "b": {"name": found.b.name, "step": found.b.step},
        "rows_per_source": judged.rows_per_source,
        "draws": judged.draws,
        "seed": judged.seed,
        "overall": found.overall.model_dump(mode="json"),
        "sources": {name: losses.model_dump(mode="json") for name, losses in found.sources.items()},
        "texts": [
            {"a": sample_json(found.a, asked, of_a), "b": sample_json(found.b, asked, of_b)}
            for of_a, of_b in found.texts
        ],
    }


def _rows(found: Comparison) -> list[tuple[str, str, str, str, str]]:
    rows = []
    for name, losses in [*sorted(found.sources.items()), ("all", found.overall)]:
        for what, of_a, of_b, difference, digits in (
            ("loss (nats)", losses.loss_a, losses.loss_b, losses.loss_difference, 4),
            ("mean depth", losses.depth_a, losses.depth_b, losses.depth_difference, 3),
        ):
            numbers = f"{of_a.value:.{digits}f}", f"{of_b.value:.{digits}f}", f"{difference.value:+.{digits}f}"
            rows.append((f"{name}, {what}", *numbers, _bounds(difference, digits)))
    return rows


def _bounds(estimate: Estimate, digits: int) -> str:
    if estimate.interval is None:
        return "one document only"
    low, high = estimate.interval
    return f"{low:+.{digits}f} to {high:+.{digits}f}"


def _verdict(found: Comparison) -> str:
    between = found.overall.loss_difference.interval
    if between is None:
        return "One document says nothing of how sure the difference is."
    if between[0] > 0:
        return "A has the lower loss; the interval leaves zero out."
    if between[1] < 0:
        return "B has the lower loss; the interval leaves zero out."
    return "The interval holds zero: these rows do not tell which has the lower loss."


def _on_what(found: Comparison, judged: Judged) -> str:
    overall = found.overall
    return (
        f"{overall.rows:,} validation rows, {overall.tokens:,} predicted tokens of {overall.documents:,} documents; "
        f"{judged.draws:,} draws of documents, seed {judged.seed}"
    )


def _tell(found: Comparison, asked: Asked, judged: Judged) -> None:
    console.print(f"A  {found.a.name}\nB  {found.b.name}", markup=False)
    shown = Table(title=_on_what(found, judged), title_justify="left")
    for number, name in enumerate(_HEAD):
        shown.add_column(name, justify="right" if number else "left")
    for row in _rows(found):
        shown.add_row(*row)
    console.print(shown)
    console.print(_verdict(found))
    if not found.texts:
        return
    console.print(f"\n{asked.told()}")
    for of_a, of_b in found.texts:
        beside = Table(show_lines=True)
        for name in ("A", "B"):
            beside.add_column(name, ratio=1, overflow="fold")
        beside.add_row(*(render(dataclasses.replace(text, max_passes=found.max_passes)) for text in (of_a, of_b)))
        console.print(beside)


def comparison_page(found: Comparison, asked: Asked, judged: Judged) -> str:
    """Numbers, then the texts side by side."""
    parts = [
        f"<p>A: {html.escape(found.a.name)}<br>B: {html.escape(found.b.name)}</p>",
        "<h2>On the same validation rows</h2>",
        f'<p class="told">{html.escape(_on_what(found, judged))}</p>',
        table(_HEAD, _rows(found)),
        f"<p>{html.escape(_verdict(found))}</p>",
    ]
    if found.texts:
        parts += [
            "<h2>On the same prompts</h2>",
            f"<p>Every token stands on the colour of its depth, the passes it took part in when it was read: "
            f"{legend(found.max_passes)}. Prompts are bold.</p>",
            f'<p class="told">{html.escape(asked.told())}</p>',
        ]
    for of_a, of_b in found.texts:
        sides = "".join(
            f'<div><p class="told">{name}, mean depth {text.mean_depth:.2f}</p>{tinted_text(text)}</div>'
            for name, text in (("A", of_a), ("B", of_b))
        )
        parts.append(f'<div class="beside">{sides}</div>')
    return tinted_page("Two networks compared", parts, found.max_passes)
