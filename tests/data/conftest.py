"""Small shards of random tokens for the tests of data loading."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.manifest import write_manifest
from tests.data.random_shards import VOCABULARY, DataSet, MakeShards, expected_rows, make_manifest
from tests.data.shard_server import Server
from tokenization.packing import RowPacker
from tokenization.shard_writer import ShardWriter


@pytest.fixture
def make_shards(tmp_path: Path) -> MakeShards:
    """make_shards(tokens=..., ...) writes that many random tokens; gives folder, manifest and the rows expected."""

    def make(
        *, tokens: int, seq_len: int = 16, rows_per_chunk: int = 8, shard_bytes: int = 8192, dtype: type = np.uint16
    ):
        folder = tmp_path / "shards"
        ids = np.random.default_rng(0).integers(1, VOCABULARY, tokens - 1)
        packer = RowPacker(seq_len=seq_len, rows_per_chunk=rows_per_chunk, dtype=np.dtype(dtype), end_of_document_id=0)
        padding = 0
        with ShardWriter(folder, "train", shard_bytes) as writer:
            for chunk in packer.add(ids.tolist(), "A", 1):
                writer.write(chunk)
            for chunk in packer.finish():
                padding = chunk.padding_tokens
                writer.write(chunk)
        return folder, make_manifest(writer.shards, seq_len, tokens, padding), expected_rows(ids, seq_len, padding)

    return make


@pytest.fixture
def data_set(make_shards: MakeShards) -> DataSet:
    """A finished folder of 16 shards or so, with tokenizer and manifest."""
    folder, manifest, expected = make_shards(tokens=3000)
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    (folder / "tokenizer" / "tokenizer_config.json").write_text("{}")
    tokenizer = manifest.tokenizer.model_copy(update={"sha256": hashlib.sha256(b"{}").hexdigest()})
    manifest = manifest.model_copy(update={"tokenizer": tokenizer})
    write_manifest(folder, manifest)
    return folder, manifest, expected


@pytest.fixture
def server(data_set: DataSet) -> Iterator[Server]:
    found = Server(data_set[0])
    yield found
    found.close()
