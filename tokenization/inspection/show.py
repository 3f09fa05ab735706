"""What a folder of shards holds: figures by split and source, what they take on disk, how long the documents are.

All but the lengths stands in the manifest; the lengths are read from the chunks' metas, without the tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pipeline.console import console
from pipeline.data.manifest import MANIFEST_NAME, Manifest, SplitEntry, read_manifest
from pipeline.errors import UserError, WorldError
from tokenization.inspection.document_lengths import Lengths, document_lengths
from tokenization.inspection.length_plot import write_length_plot

PICTURE_NAME = "document-lengths.png"
BAR_CHARACTERS = 30
SPARKS = " ▁▂▃▄▅▆▇█"
WIDEST = 10_000


@dataclass(frozen=True)
class SourceFigures:
    """One source in train, or in the validation sets."""

    split: str
    source: str
    documents: int
    tokens: int
    """End-of-document marks included, padding excluded."""
    token_share: float
    """Of the tokens of train, or of all validation sets."""
    text_bytes: int
    tokens_a_document: float
    bytes_a_token: float


@dataclass(frozen=True)
class DiskFigures:
    """What all splits take."""

    shards: int
    chunks: int
    rows: int
    bytes: int
    """Shards and their indices."""
    token_bytes: int
    """The rows as bare numbers."""
    overhead_percent: float
    """What `bytes` is above `token_bytes`."""


@dataclass(frozen=True)
class Figures:
    """All that `adaponder data show` tells."""

    folder: str
    seq_len: int
    tokenizer: str
    sources: list[SourceFigures]
    rejected: dict[str, int]
    disk: DiskFigures
    lengths: dict[str, Lengths]
    """By source, over all splits."""


def show_and_tell(shards: Path, png: Path | None, as_json: bool) -> None:
    """Print the tables and write the picture; with `as_json` print JSON, and a picture only where `png` names one."""
    if not shards.is_dir():
        raise UserError(f"{shards}: no such folder: give the folder that holds {MANIFEST_NAME}")
    manifest = read_manifest(shards)
    bar = Progress(
        TextColumn("lengths"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("shards"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=as_json or not console.is_terminal,
    )
    with bar:
        task = bar.add_task("lengths", total=sum(len(split.shards) for split in manifest.splits.values()))
        figures = measure(shards, manifest, lambda done: bar.advance(task, done))
    if as_json:
        print(json.dumps(as_plain(figures), indent=2, ensure_ascii=False))
    else:
        _print_tables(figures)
    picture = png or (None if as_json else shards / PICTURE_NAME)
    if picture is not None:
        try:
            write_length_plot(picture, figures.lengths, str(shards))
        except OSError as error:
            raise UserError(f"{picture} cannot be written ({error.strerror}): name a place with --png") from error
        if not as_json:
            console.print(f"picture: {picture}", markup=False)


def measure(shards: Path, manifest: Manifest, advance: Callable[[int], object] = lambda _: None) -> Figures:
    """All figures of the folder `shards`; `advance` is told the shards read. `WorldError` names a damaged shard."""
    sources = []
    for kind in ("train", "validation"):
        splits = {key: split for key, split in manifest.splits.items() if split.split == kind}
        all_tokens = sum(split.tokens for split in splits.values())
        for key, split in splits.items():
            sources += _source_figures(key, split, all_tokens)
    return Figures(
        folder=str(shards),
        seq_len=manifest.seq_len,
        tokenizer=manifest.tokenizer.name,
        sources=sources,
        rejected=manifest.rejected,
        disk=_disk_figures(shards, manifest),
        lengths=document_lengths(shards, manifest, advance),
    )


def as_plain(figures: Figures) -> dict[str, Any]:
    """The figures as JSON has them; a length's bin is given by its lowest number of tokens."""
    plain = asdict(figures)
    plain["lengths"] = {
        source: {
            "documents": lengths.documents,
            "tokens": lengths.tokens,
            "shortest": lengths.shortest,
            "mean": lengths.mean,
            "longest": lengths.longest,
            "documents_from_tokens": {str(2**power): lengths.bins[power] for power in sorted(lengths.bins)},
        }
        for source, lengths in figures.lengths.items()
    }
    return plain


def _source_figures(key: str, split: SplitEntry, all_tokens: int) -> list[SourceFigures]:
    return [
        SourceFigures(
            split=key,
            source=source,
            documents=count.documents,
            tokens=count.tokens,
            token_share=count.tokens / max(all_tokens, 1),
            text_bytes=count.text_bytes,
            tokens_a_document=count.tokens / max(count.documents, 1),
            bytes_a_token=count.text_bytes / max(count.tokens, 1),
        )
        for source, count in split.sources.items()
    ]


def _disk_figures(shards: Path, manifest: Manifest) -> DiskFigures:
    entries = [entry for split in manifest.splits.values() for entry in split.shards]
    rows = sum(entry.rows for entry in entries)
    token_bytes = rows * (manifest.seq_len + 1) * (2 if manifest.token_dtype == "uint16" else 4)
    try:
        index_bytes = sum((shards / entry.name).with_suffix(".idx").stat().st_size for entry in entries)
    except OSError as error:
        raise WorldError(f"{error.filename} cannot be read: {error.strerror}") from error
    disk_bytes = sum(entry.bytes for entry in entries) + index_bytes
    return DiskFigures(
        shards=len(entries),
        chunks=sum(entry.chunks for entry in entries),
        rows=rows,
        bytes=disk_bytes,
        token_bytes=token_bytes,
        overhead_percent=100 * (disk_bytes / token_bytes - 1) if token_bytes else 0.0,
    )


def _print_tables(figures: Figures) -> None:
    for kind in ("train", "validation"):
        chosen = [one for one in figures.sources if (one.split == "train") == (kind == "train")]
        if chosen:
            _print(kind, _source_table(chosen))
    disk = figures.disk
    console.print(
        f"\n{disk.shards:,} shards, {disk.chunks:,} chunks, {disk.rows:,} rows of {figures.seq_len} + 1 tokens "
        f"({figures.tokenizer}): {_told_bytes(disk.bytes)} on disk, "
        f"{disk.overhead_percent:.2f} % above the raw tokens",
        markup=False,
    )
    if figures.rejected:
        table = _table(("reason", "records"))
        for reason, count in figures.rejected.items():
            table.add_row(Text(reason), f"{count:,}")
        _print("refused", table)
    else:
        console.print("\nrefused: none")
    if figures.lengths:
        _print("length of the documents in tokens", _length_table(figures.lengths))
        _print("the same, all sources together", _histogram_table(figures.lengths))
        console.print()


def _source_table(chosen: list[SourceFigures]) -> Table:
    table = _table(
        ("source", "documents", "tokens", "share", "text", "tokens a\ndocument", "bytes a\ntoken"),
        footer=len(chosen) > 1,
    )
    for one in sorted(chosen, key=lambda one: -one.tokens):
        table.add_row(
            Text(one.source),  # a name is no markup
            f"{one.documents:,}",
            f"{one.tokens:,}",
            f"{one.token_share:.2%}",
            _told_bytes(one.text_bytes),
            f"{one.tokens_a_document:,.1f}",
            f"{one.bytes_a_token:.3f}",
        )
    documents, tokens, text_bytes = (
        sum(getattr(one, name) for one in chosen) for name in ("documents", "tokens", "text_bytes")
    )
    footers = (
        "all",
        f"{documents:,}",
        f"{tokens:,}",
        f"{1:.2%}",
        _told_bytes(text_bytes),
        f"{tokens / max(documents, 1):,.1f}",
        f"{text_bytes / max(tokens, 1):.3f}",
    )
    for column, footer in zip(table.columns, footers, strict=True):
        column.footer = footer
    return table


def _length_table(lengths: dict[str, Lengths]) -> Table:
    """A line a source; its sparks are the same bins for all."""
    powers = [power for one in lengths.values() for power in one.bins]
    low, high = min(powers, default=0), max(powers, default=0)
    table = _table(
        ("source", "documents", "shortest", "mean", "longest", f"{2**low:,} to\n{2 ** (high + 1) - 1:,}, doubling"),
    )
    table.columns[-1].justify = "left"
    for source, one in lengths.items():
        most = max(one.bins.values(), default=1)
        # Whatever is there at all is seen: rounding goes up.
        sparks = "".join(SPARKS[-(-8 * one.bins[power] // most)] for power in range(low, high + 1))
        numbers = (f"{one.documents:,}", f"{one.shortest:,}", f"{one.mean:,.1f}", f"{one.longest:,}")
        table.add_row(Text(source), *numbers, sparks)
    return table


def _histogram_table(lengths: dict[str, Lengths]) -> Table:
    together = Lengths()
    for one in lengths.values():
        together.join(one)
    table = _table(("tokens", "documents", "share", ""))
    table.columns[0].justify = "right"
    table.columns[-1].justify = "left"
    most = max(together.bins.values(), default=1)
    for power in range(min(together.bins, default=0), max(together.bins, default=-1) + 1):
        count = together.bins[power]
        bar = "█" * -(-BAR_CHARACTERS * count // most)
        first, last = 2**power, 2 ** (power + 1) - 1
        told = f"{first:,}" if first == last else f"{first:,} - {last:,}"
        table.add_row(told, f"{count:,}", f"{count / together.documents:.2%}", bar)
    return table


def _table(names: tuple[str, ...], footer: bool = False) -> Table:
    """A table whose first column is text and whose others are numbers."""
    table = Table(show_footer=footer, box=None, pad_edge=False)
    for place, name in enumerate(names):
        table.add_column(
            name, justify="right" if place else "left", no_wrap=True, header_style="dim", footer_style="bold"
        )
    return table


def _print(title: str, table: Table) -> None:
    # A narrow terminal wraps a line; no number is cut.
    wide = Console(file=console.file, width=WIDEST)
    wide.width = max(Measurement.get(wide, wide.options, table).maximum, len(title))
    wide.print(f"\n{title}", style="bold", highlight=False)
    wide.print(table)


def _told_bytes(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.2f} {unit}"
        size /= 1000
    return f"{size:,.2f} TB"
