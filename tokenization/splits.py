"""The splits of one part while it is made: train, which mixes all sources, and one validation set a source."""

from __future__ import annotations

import hashlib
import re
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np

from pipeline.data.manifest import SourceCount, SplitEntry
from pipeline.errors import UserError
from pipeline.recipe_tokenize import TokenizeSection
from tokenization.documents import Document, Split, TokenizedDocument
from tokenization.packing import RowPacker, Tail
from tokenization.shard_writer import ShardWriter

TRAIN_KEY = "train"
# The Pile has 22 sources.
MAX_VALIDATION_SETS = 256
MAX_SOURCES = 4096
LONGEST_SAFE_NAME = 48


class SplitSet:
    """Sends each document of a part to its split and writes the chunks that become full.

    All shards of all splits are whole when the `with` block has ended; the tails are the caller's to keep. Tars are
    named by split and part: "train-00012-000000.tar".
    """

    def __init__(
        self, folder: Path, section: TokenizeSection, dtype: np.dtype, end_of_document_id: int, part: int
    ) -> None:
        self._folder = folder
        self._section = section
        self._dtype = dtype
        self._end_of_document_id = end_of_document_id
        self._part = part
        self._splits: dict[str, _OneSplit] = {}
        self._writers = ExitStack()

    def __enter__(self) -> SplitSet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writers.__exit__(kind, error, trace)

    def add(self, document: Document | TokenizedDocument, ids: np.ndarray) -> None:
        """Append a document whose text has the token ids `ids` [n]."""
        key = TRAIN_KEY if document.split == "train" else validation_key(document.source)
        if key not in self._splits:
            self._splits[key] = self._new_split(key, document.split, document.source)
        self._splits[key].add(document, ids)

    def results(self) -> dict[str, tuple[SplitEntry, Tail]]:
        """By split key what was written, and what fills no chunk; for after the block."""
        return {key: (split.entry(), split.tail()) for key, split in sorted(self._splits.items())}

    def _new_split(self, key: str, split: Split, source: str) -> _OneSplit:
        if len(self._splits) > MAX_VALIDATION_SETS:
            raise too_many_validation_sets(source)
        packer = new_packer(self._section, self._dtype, self._end_of_document_id)
        writer = ShardWriter(self._folder, f"{key}-{self._part:05d}", self._section.shard_bytes)
        return _OneSplit(split, None if split == "train" else source, packer, self._writers.enter_context(writer))


class _OneSplit:
    """One split's packer, writer and counts."""

    def __init__(self, split: Split, source: str | None, packer: RowPacker, writer: ShardWriter) -> None:
        self._split: Split = split
        self._source = source
        self._packer = packer
        self._writer = writer
        self._counts: dict[str, list[int]] = {}  # by source: documents, tokens, bytes of text

    def add(self, document: Document | TokenizedDocument, ids: np.ndarray) -> None:
        if document.source not in self._counts and len(self._counts) >= MAX_SOURCES:
            raise too_many_sources(document.source)
        count = self._counts.setdefault(document.source, [0, 0, 0])
        count[0] += 1
        count[1] += len(ids) + 1
        count[2] += document.text_bytes
        for chunk in self._packer.add(ids, document.source, document.text_bytes):
            self._writer.write(chunk)

    def entry(self) -> SplitEntry:
        return SplitEntry(
            split=self._split,
            source=self._source,
            rows=sum(shard.rows for shard in self._writer.shards),
            padding_tokens=0,
            sources={
                name: SourceCount(documents=documents, tokens=tokens, text_bytes=text_bytes)
                for name, (documents, tokens, text_bytes) in sorted(self._counts.items())
            },
            shards=self._writer.shards,
        )

    def tail(self) -> Tail:
        return self._packer.tail()


def new_packer(section: TokenizeSection, dtype: np.dtype, end_of_document_id: int) -> RowPacker:
    """A packer with the recipe's sizes."""
    return RowPacker(
        seq_len=section.seq_len,
        rows_per_chunk=section.rows_per_chunk,
        dtype=dtype,
        end_of_document_id=end_of_document_id,
    )


def too_many_sources(source: str) -> UserError:
    """Each is counted in the manifest; that many mean that the field is not a source."""
    return UserError(
        f"training documents come from more than {MAX_SOURCES} sources, the latest is {source!r}: "
        "let tokenize.sources.*.source_field name a field with few values"
    )


def too_many_validation_sets(source: str) -> UserError:
    """Each holds a chunk in memory; that many mean that the field is not a source."""
    return UserError(
        f"more than {MAX_VALIDATION_SETS} sources have validation documents, the latest is {source!r}: "
        "let tokenize.sources.*.source_field name a field with few values"
    )


def validation_key(source: str) -> str:
    """The key of a source's validation set and prefix of its shards' names: "validation-" and a safe form of `source`.

    Letters, digits, "_" and "-" stay, so most names are kept as they are. Any other name gets "_" in the place of
    what is unsafe (also of ".", where WebDataset and DALI cut a name) and eight digits of its hash behind it, so that
    distinct sources keep distinct names.
    """
    safe = re.sub(r"[^A-Za-z0-9_-]", "_", source)[:LONGEST_SAFE_NAME]
    if safe != source or re.search(r"-[0-9a-f]{8}$", source):
        safe += "-" + hashlib.sha256(source.encode()).hexdigest()[:8]
    return f"validation-{safe}"
