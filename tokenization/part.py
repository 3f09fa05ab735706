"""One part of the work: its slices read, cleaned, encoded and packed, in one process and bounded memory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from pipeline.data.manifest import InputEntry
from pipeline.durable import sha256_file, whole_file
from pipeline.errors import WorldError
from pipeline.recipe import Recipe
from tokenization.cleaning.cleaner import Cleaner
from tokenization.cleaning.contamination import Contamination
from tokenization.cleaning.duplicates import duplicates_in, write_scan
from tokenization.documents import Document, Item, Rejection, SliceEnd, SourceReader, TokenizedDocument, pieces_of
from tokenization.encoding.tokenizer import DocumentTokenizer
from tokenization.part_folder import (
    REJECTED_NAME,
    PartResult,
    PartsFolder,
    ScanResult,
    SliceResult,
    SplitResult,
)
from tokenization.plan import Part
from tokenization.sources.find_files import find_files
from tokenization.sources.json_lines import SUFFIXES
from tokenization.sources.open_sources import open_sources
from tokenization.splits import MAX_VALIDATION_SETS, SplitSet
from tokenization.weights import Weight

# What is encoded at once: enough to spread the cost of a call, little enough to stay small in memory.
BATCH_BYTES = 1 << 20
BATCH_DOCUMENTS = 1024
CHECKED_DOCUMENTS = 16
CHECKED_BYTES = 32 << 10
"""Of every source, the beginnings of the first documents are encoded by `tokenizers` too, about as much text."""


class EncodingDiffers(Exception):
    """The fast encoding and `tokenizers` give other ids: what was made with it is not to be used."""


class Progress(Protocol):
    """Who wants to know how the work goes."""

    def advance(self, text_bytes: int) -> None:
        """So many bytes of the inputs' text were read."""
        ...

    def count(self, text_bytes: int, tokens: int) -> None:
        """So much was encoded."""
        ...


@dataclass(frozen=True)
class Tools:
    """What a process needs to make any part; opened once."""

    recipe: Recipe
    shards: Path
    readers: list[SourceReader]
    tokenizer: DocumentTokenizer
    contamination: Contamination | None
    checked: dict[str, list[int]]
    """Documents and bytes by source that the fast encoding was checked on."""
    notes: list[str]
    """What the operator should know of the opening."""

    @staticmethod
    def open(recipe: Recipe, shards: Path, tokenizer: DocumentTokenizer) -> Tools:
        """Raises what `open_sources` raises."""
        section = recipe.tokenize
        notes = []
        readers = open_sources(section, recipe.seed, tokenizer, check=False)
        clean = section.clean
        contamination = None
        if clean.contamination_files:
            files = find_files(clean.contamination_files, SUFFIXES)
            contamination = Contamination.from_files(files, clean.contamination_words)
            if contamination.passed_over:
                notes.append(
                    f"{contamination.passed_over} strings of tokenize.clean.contamination_files have fewer than "
                    f"{clean.contamination_words} words and are not looked for"
                )
        return Tools(recipe, shards, readers, tokenizer, contamination, {}, notes)


def make_part(tools: Tools, part: Part, key: str, scanned: list[Path], progress: Progress) -> None:
    """Write the part's shards, tails and refused records, then its marker.

    scanned: the scans of all parts that come before this one where duplicates are removed, and this one's last.
    """
    parts = PartsFolder(tools.shards)
    section, source = tools.recipe.tokenize, tools.recipe.tokenize.sources[part.source]
    folder = parts.begin(part.number)
    weight: Weight[tuple[Document | TokenizedDocument, np.ndarray]]
    weight = Weight(source.weight, source.weight_by, tools.recipe.seed, part.number)
    dropped = duplicates_in(len(scanned) - 1, scanned) if section.clean.remove_duplicates else None
    slices: list[SliceResult] = []
    rejected: Counter[str] = Counter()
    documents: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    end_of_document_id = tools.tokenizer.entry.end_of_document_id
    splits = SplitSet(folder, section, tools.tokenizer.dtype, end_of_document_id, part.number)
    with whole_file(folder / REJECTED_NAME, "w") as rejected_file, splits:
        for pass_number in range(1 if part.slices[0].split == "validation" else weight.passes):
            cleaner = Cleaner(section.clean, dropped, tools.contamination, tools.tokenizer.text_bytes_of)
            for slice_number, item in _items(tools, part, cleaner, progress):
                if isinstance(item, tuple):
                    document, ids = item
                    if document.split == "train":
                        for taken in weight.take(pass_number, item, len(ids) + 1):
                            splits.add(*taken)
                    elif pass_number == 0:
                        splits.add(document, ids)
                    if pass_number == 0:
                        documents[document.split] += 1
                        tokens[document.split] += len(ids) + 1
                elif pass_number == 0 and isinstance(item, SliceEnd):
                    slices.append(_slice_result(part, slice_number, item))
                elif pass_number == 0 and isinstance(item, Rejection):
                    rejected[item.reason] += 1
                    line = asdict(item) | {"slice": slice_number}
                    rejected_file.write(json.dumps(line, ensure_ascii=False) + "\n")
        for taken in weight.rest():
            splits.add(*taken)
    results: dict[str, SplitResult] = {}
    for split, (entry, tail) in splits.results().items():
        with whole_file(parts.tail_file(part.number, split)) as file:
            np.save(file, tail.tokens, allow_pickle=False)
        digest = sha256_file(parts.tail_file(part.number, split))
        results[split] = SplitResult(entry=entry, tail=vars(tail.pieces), tail_sha256=digest)
    result = PartResult(
        key=key,
        slices=slices,
        splits=results,
        rejected=dict(sorted(rejected.items())),
        documents=dict(documents),
        tokens=dict(tokens),
    )
    parts.finish(part.number, result)


def scan_part(tools: Tools, part: Part, key: str, progress: Progress) -> None:
    """Write the hashes of the part's documents, then the scan's marker."""
    parts = PartsFolder(tools.shards)
    items = (item for piece in part.slices for item in tools.readers[part.source].read(piece, progress.advance))
    documents = (item for item in items if isinstance(item, Document | TokenizedDocument))
    found = write_scan(parts.begin_scan(part.number), documents)
    parts.finish_scan(part.number, ScanResult(key=key, documents=found))


def _items(
    tools: Tools, part: Part, cleaner: Cleaner, progress: Progress
) -> Iterator[tuple[int, tuple[Document | TokenizedDocument, np.ndarray] | Rejection | SliceEnd]]:
    """All items of the part in their order, with the number of their slice; documents with their token ids."""
    reader = tools.readers[part.source]
    for slice_number, piece in enumerate(part.slices):
        for item in _encoded(tools, _cleaned(reader.read(piece, progress.advance), cleaner), progress.count):
            yield slice_number, item


def _cleaned(items: Iterator[Item], cleaner: Cleaner) -> Iterator[Item]:
    for item in items:
        if isinstance(item, Document | TokenizedDocument):
            yield from cleaner.clean(item)
        else:
            yield item


def _encoded(
    tools: Tools, items: Iterator[Item], count: Callable[[int, int], object]
) -> Iterator[tuple[Document | TokenizedDocument, np.ndarray] | Rejection | SliceEnd]:
    """The items in their order, documents with their token ids; those without a token are refused."""
    batch: list[Item] = []
    batch_bytes = 0
    for item in items:
        batch.append(item)
        if isinstance(item, Document):
            batch_bytes += item.text_bytes
        if batch_bytes >= BATCH_BYTES or len(batch) >= BATCH_DOCUMENTS:
            yield from _encode(tools, batch, count)
            batch, batch_bytes = [], 0
    yield from _encode(tools, batch, count)


def _encode(
    tools: Tools, batch: list[Item], count: Callable[[int, int], object]
) -> Iterator[tuple[Document | TokenizedDocument, np.ndarray] | Rejection | SliceEnd]:
    documents = [item for item in batch if isinstance(item, Document)]
    _check_encoding(tools, documents)
    encoded = iter(tools.tokenizer.encode_batch([document.text for document in documents]))
    for item in batch:
        if isinstance(item, Document | TokenizedDocument):
            ids = item.ids if isinstance(item, TokenizedDocument) else next(encoded)
            count(item.text_bytes, len(ids) + 1)
            yield (item, ids) if len(ids) else Rejection(item.file, item.line, "empty_document")
        else:
            yield item


def _check_encoding(tools: Tools, documents: list[Document]) -> None:
    """Compare the fast encoding with `tokenizers` on the first documents of every source.

    Raises `EncodingDiffers`: no worker goes over to the other one by itself, or shards would depend on who met what.
    """
    if not tools.tokenizer.fast:
        return
    for document in documents:
        if document.source not in tools.checked and len(tools.checked) >= MAX_VALIDATION_SETS:
            continue  # a field with so many values is no source
        seen = tools.checked.setdefault(document.source, [0, 0])
        if seen[0] >= CHECKED_DOCUMENTS or seen[1] >= CHECKED_BYTES:
            continue
        beginning = next(iter(pieces_of(document.text)))[:CHECKED_BYTES]
        seen[0] += 1
        seen[1] += len(beginning)
        difference = tools.tokenizer.check([beginning])
        if difference is not None:
            raise EncodingDiffers(f"{document.file}: {difference}")


def _slice_result(part: Part, slice_number: int, end: SliceEnd) -> SliceResult:
    name = part.slices[slice_number].input
    known = None if end.sha256 is None else InputEntry(path=name, bytes=end.bytes, sha256=end.sha256)
    return SliceResult(input=known, records=end.records)


def check_part(parts: PartsFolder, number: int, result: PartResult) -> None:
    """Compare all files of a finished part with the hashes taken when they were written.

    Raises `WorldError` naming the file that differs.
    """
    for key, split in result.splits.items():
        wanted = {parts.tail_file(number, key): split.tail_sha256}
        for shard in split.entry.shards:
            path = parts.part(number) / shard.name
            wanted |= {path: shard.sha256, path.with_suffix(".idx"): shard.index_sha256}
        for path, sha256 in wanted.items():
            try:
                found = sha256_file(path)
            except OSError as error:
                raise WorldError(
                    f"{path} cannot be read ({error.strerror}): remove {path.parent} to make that part again"
                ) from error
            if found != sha256:
                raise WorldError(
                    f"{path} is not what was written, its sha256 differs: remove {path.parent} to make that part again"
                )
