"""Manifests and rows of generated shards for the tests of data loading."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.data.manifest import Manifest, ShardEntry, SourceCount, SplitEntry, TokenizerEntry

MakeShards = Callable[..., tuple[Path, Manifest, np.ndarray]]
DataSet = tuple[Path, Manifest, np.ndarray]
"""Folder, manifest and all rows."""
VOCABULARY = 60_000


def expected_rows(ids: np.ndarray, seq_len: int, padding: int) -> np.ndarray:
    return np.concatenate([ids, np.zeros(1 + padding, dtype=np.int64)]).reshape(-1, seq_len + 1)


def make_manifest(shards: list[ShardEntry], seq_len: int, tokens: int, padding: int) -> Manifest:
    train = SplitEntry(
        split="train",
        source=None,
        rows=sum(shard.rows for shard in shards),
        padding_tokens=padding,
        sources={"A": SourceCount(documents=1, tokens=tokens, text_bytes=1)},
        shards=shards,
    )
    return Manifest(
        tokenizer=TokenizerEntry(name="none", sha256="", vocab_size=VOCABULARY, end_of_document_id=0),
        seq_len=seq_len,
        token_dtype="uint16",
        splits={"train": train},
        rejected={},
        inputs=[],
        settings_sha256="",
        command="test",
        version="0",
    )
