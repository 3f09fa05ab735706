"""Whole folders of shards, made of generated documents through the real packer, writer and tokenizer."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from pipeline.data.manifest import (
    Manifest,
    ShardEntry,
    SourceCount,
    SplitEntry,
    TokenizerEntry,
    read_manifest,
    write_manifest,
)
from pipeline.durable import sha256_file
from tests.tokenization.generated_records import END
from tokenization.packing import RowPacker, Tail
from tokenization.shard_writer import ShardWriter


@dataclass(frozen=True)
class Written:
    """One document of a data set."""

    source: str
    ids: list[int]
    """With its end-of-document mark."""
    text_bytes: int


@dataclass
class DataSet:
    """A folder of shards and what was put into it."""

    folder: Path
    splits: dict[str, list[Written]]
    """Documents by split key, in the order of the parts."""

    @property
    def manifest(self) -> Manifest:
        return read_manifest(self.folder)

    def change(self, **fields) -> None:
        """Write the manifest with other fields."""
        write_manifest(self.folder, self.manifest.model_copy(update=fields))

    def change_split(self, key: str, **fields) -> None:
        splits = self.manifest.splits
        self.change(splits={**splits, key: splits[key].model_copy(update=fields)})

    def believe(self) -> None:
        """Make the manifest name all shards as they are now: damage that no hash tells."""
        splits = {
            key: split.model_copy(update={"shards": [entry_now(self.folder, entry) for entry in split.shards]})
            for key, split in self.manifest.splits.items()
        }
        self.change(splits=splits)


def entry_now(folder: Path, entry: ShardEntry) -> ShardEntry:
    """The entry with the size and the hashes that the files have now."""
    path = folder / entry.name
    hashes = {"sha256": sha256_file(path), "index_sha256": sha256_file(path.with_suffix(".idx"))}
    return entry.model_copy(update={"bytes": path.stat().st_size, **hashes})


def make_data_set(
    folder: Path,
    tokenizer_folder: Path,
    parts: Mapping[str, Sequence[Sequence[tuple[str, str]]]],
    *,
    seq_len: int = 16,
    rows_per_chunk: int = 8,
    shard_bytes: int = 16384,
    dtype: type = np.uint16,
) -> DataSet:
    """Write `parts`: by split key the parts, each a list of (source, text).

    Each part writes its full chunks under its own name; what is left of all parts is packed together at the end.
    """
    (folder / "tokenizer").mkdir(parents=True)
    shutil.copy(tokenizer_folder / "tokenizer.json", folder / "tokenizer")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    end = tokenizer.get_vocab()[END]
    splits: dict[str, SplitEntry] = {}
    written: dict[str, list[Written]] = {}
    for key, of_split in parts.items():
        written[key] = []
        packers = [
            RowPacker(seq_len=seq_len, rows_per_chunk=rows_per_chunk, dtype=np.dtype(dtype), end_of_document_id=end)
            for _ in range(len(of_split) + 1)
        ]
        shards = []
        tails: list[Tail] = []
        for number, documents in enumerate(of_split):
            with ShardWriter(folder, f"{key}-{number:05d}", shard_bytes) as writer:
                for source, text in documents:
                    ids = tokenizer.encode(text, add_special_tokens=False).ids
                    written[key].append(Written(source, [*ids, end], len(text.encode())))
                    for chunk in packers[number].add(np.array(ids), source, len(text.encode())):
                        writer.write(chunk)
            shards += writer.shards
            tails.append(packers[number].tail())
        padding = 0
        with ShardWriter(folder, f"{key}-tails", shard_bytes) as writer:
            for tail in tails:
                for chunk in packers[-1].add_tail(tail):
                    writer.write(chunk)
            for chunk in packers[-1].finish():
                padding = chunk.padding_tokens
                writer.write(chunk)
        shards += writer.shards
        entries = []
        for number, entry in enumerate(shards):
            named = entry.model_copy(update={"name": f"{key}-{number:06d}.tar"})
            (folder / entry.name).rename(folder / named.name)
            (folder / entry.name).with_suffix(".idx").rename((folder / named.name).with_suffix(".idx"))
            entries.append(named)
        splits[key] = SplitEntry(
            split="train" if key == "train" else "validation",
            source=None if key == "train" else key.removeprefix("validation-"),
            rows=sum(entry.rows for entry in entries),
            padding_tokens=padding,
            sources=_counts(written[key]),
            shards=entries,
        )
    manifest = Manifest(
        tokenizer=TokenizerEntry(
            name="generated",
            sha256=sha256_file(folder / "tokenizer" / "tokenizer.json"),
            vocab_size=max(tokenizer.get_vocab().values()) + 1,
            end_of_document_id=end,
        ),
        seq_len=seq_len,
        token_dtype="uint16" if dtype is np.uint16 else "uint32",
        splits=splits,
        rejected={"empty_document": 2, "not_utf8": 1},
        inputs=[],
        settings_sha256="",
        command="test",
        version="0",
    )
    reasons = ("empty_document", "not_utf8", "empty_document")
    (folder / "rejected.jsonl").write_text(
        "".join(
            f'{{"file": "a", "line": {n}, "reason": "{reason}", "detail": ""}}\n' for n, reason in enumerate(reasons)
        )
    )
    write_manifest(folder, manifest)
    return DataSet(folder, written)


def _counts(documents: Sequence[Written]) -> dict[str, SourceCount]:
    number, tokens, text_bytes = Counter[str](), Counter[str](), Counter[str]()
    for one in documents:
        number[one.source] += 1
        tokens[one.source] += len(one.ids)
        text_bytes[one.source] += one.text_bytes
    return {
        source: SourceCount(documents=number[source], tokens=tokens[source], text_bytes=text_bytes[source])
        for source in sorted(number)
    }
