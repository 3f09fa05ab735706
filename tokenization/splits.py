"""The splits of a data set while they are made: train, which mixes all sources, and one validation set a source."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np

from pipeline.data.manifest import SourceCount, SplitEntry
from pipeline.errors import UserError
from pipeline.recipe import TokenizeSection
from tokenization.documents import Document, Split
from tokenization.packing import RowPacker
from tokenization.shard_writer import ShardWriter

TRAIN_KEY = "train"
# Each holds a chunk in memory and a file open. The Pile has 22 sources; hundreds mean that the field is not a source.
MAX_VALIDATION_SETS = 256
LONGEST_SAFE_NAME = 48


class SplitSet:
    """Sends each document to its split; all shards of all splits are whole when the `with` block has ended."""

    def __init__(self, folder: Path, section: TokenizeSection, dtype: np.dtype, end_of_document_id: int) -> None:
        self._folder = folder
        self._section = section
        self._dtype = dtype
        self._end_of_document_id = end_of_document_id
        self._splits: dict[str, _OneSplit] = {}
        self._writers = ExitStack()

    def __enter__(self) -> SplitSet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            try:
                for split in self._splits.values():
                    split.finish()
            except BaseException as failure:
                self._writers.__exit__(type(failure), failure, failure.__traceback__)
                raise
        self._writers.__exit__(kind, error, trace)

    def add(self, document: Document, ids: Sequence[int]) -> None:
        """Append a document whose text has the token ids `ids`."""
        key = TRAIN_KEY if document.split == "train" else validation_key(document.source)
        if key not in self._splits:
            self._splits[key] = self._new_split(key, document.split, document.source)
        self._splits[key].add(document, ids)

    def entries(self) -> dict[str, SplitEntry]:
        """For the manifest: train first, then the validation sets by name."""
        return {key: self._splits[key].entry() for key in sorted(self._splits, key=lambda key: (key != TRAIN_KEY, key))}

    def _new_split(self, key: str, split: Split, source: str) -> _OneSplit:
        if len(self._splits) > MAX_VALIDATION_SETS:
            raise UserError(
                f"more than {MAX_VALIDATION_SETS} sources have validation documents, the latest is {source!r}: "
                "let tokenize.sources.*.source_field name a field with few values"
            )
        packer = RowPacker(
            seq_len=self._section.seq_len,
            rows_per_chunk=self._section.rows_per_chunk,
            dtype=self._dtype,
            end_of_document_id=self._end_of_document_id,
        )
        writer = self._writers.enter_context(ShardWriter(self._folder, key, self._section.shard_bytes))
        return _OneSplit(split, None if split == "train" else source, packer, writer)


class _OneSplit:
    """One split's packer, writer and counts."""

    def __init__(self, split: Split, source: str | None, packer: RowPacker, writer: ShardWriter) -> None:
        self._split: Split = split
        self._source = source
        self._packer = packer
        self._writer = writer
        self._counts: dict[str, list[int]] = {}  # by source: documents, tokens, bytes of text
        self._padding_tokens = 0

    def add(self, document: Document, ids: Sequence[int]) -> None:
        count = self._counts.setdefault(document.source, [0, 0, 0])
        count[0] += 1
        count[1] += len(ids) + 1
        count[2] += document.text_bytes
        for chunk in self._packer.add(ids, document.source, document.text_bytes):
            self._writer.write(chunk)

    def finish(self) -> None:
        for chunk in self._packer.finish():
            self._padding_tokens = chunk.padding_tokens
            self._writer.write(chunk)

    def entry(self) -> SplitEntry:
        return SplitEntry(
            split=self._split,
            source=self._source,
            rows=sum(shard.rows for shard in self._writer.shards),
            padding_tokens=self._padding_tokens,
            sources={
                name: SourceCount(documents=documents, tokens=tokens, text_bytes=text_bytes)
                for name, (documents, tokens, text_bytes) in sorted(self._counts.items())
            },
            shards=self._writer.shards,
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
