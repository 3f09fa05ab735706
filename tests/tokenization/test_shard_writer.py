"""Shards are tars that tar tools read, with an index that points at the right bytes."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.manifest import ShardEntry
from tokenization.packing import Chunk, Pieces
from tokenization.shard_writer import ShardWriter


def make_chunks(count: int) -> list[Chunk]:
    chance = np.random.default_rng(0)
    chunks = []
    for number in range(count):
        pieces = Pieces()
        pieces.append("source", 0, 100 + number, 300)
        chunks.append(Chunk(chance.integers(0, 65_536, (100 + number, 17), dtype=np.uint16), pieces, 0))
    return chunks


def write(folder: Path, chunks: list[Chunk], shard_bytes: int) -> list[ShardEntry]:
    with ShardWriter(folder, "train", shard_bytes) as writer:
        for chunk in chunks:
            writer.write(chunk)
    return writer.shards


def test_members_and_index_agree_with_the_chunks(tmp_path: Path) -> None:
    chunks = make_chunks(12)
    shards = write(tmp_path, chunks, 16_000)
    assert len(shards) > 2
    assert [shard.name for shard in shards] == [f"train-{number:06d}.tar" for number in range(len(shards))]
    keys: list[str] = []
    left = list(chunks)
    for shard in shards:
        path = tmp_path / shard.name
        content = path.read_bytes()
        index = path.with_suffix(".idx").read_bytes()
        assert shard.bytes == len(content) <= 16_000
        assert shard.sha256 == hashlib.sha256(content).hexdigest()
        assert shard.index_sha256 == hashlib.sha256(index).hexdigest()
        with tarfile.open(path) as tar:
            members = tar.getmembers()
        first, *lines = index.decode().splitlines()
        assert first == f"v1.2 {len(members) // 2}"
        # What wds2idx writes, from Python's own reading of the tar.
        assert lines == [
            " ".join(
                f"{member.name.split('.', 1)[1]} {member.offset_data} {member.size} {member.name}" for member in pair
            )
            for pair in zip(members[::2], members[1::2], strict=True)
        ]
        rows = 0
        for line in lines:
            tokens_extension, offset, size, name, meta_extension, meta_offset, meta_size, _ = line.split(" ")
            assert (tokens_extension, meta_extension) == ("tokens.npy", "meta.json")
            chunk = left.pop(0)
            tokens = np.load(io.BytesIO(content[int(offset) : int(offset) + int(size)]))
            np.testing.assert_array_equal(tokens, chunk.tokens)
            assert tokens.dtype == np.uint16
            assert json.loads(content[int(meta_offset) : int(meta_offset) + int(meta_size)]) == chunk.meta()
            keys.append(name.split(".")[0])
            rows += len(tokens)
        assert (shard.chunks, shard.rows) == (len(lines), rows)
    assert not left
    assert len(set(keys)) == len(keys)


def test_nothing_of_the_machine_or_the_hour_is_in_a_tar(tmp_path: Path) -> None:
    write(tmp_path, make_chunks(2), 1 << 20)
    with tarfile.open(tmp_path / "train-000000.tar") as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
            assert member.mode == 0o644


def test_a_chunk_larger_than_a_shard_gets_one_of_its_own(tmp_path: Path) -> None:
    assert [shard.chunks for shard in write(tmp_path, make_chunks(3), 1)] == [1, 1, 1]


def test_an_error_leaves_only_whole_shards(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="in the middle"), ShardWriter(tmp_path, "train", 16_000) as writer:
        for chunk in make_chunks(5):
            writer.write(chunk)
        raise RuntimeError("in the middle")
    whole = [tmp_path / shard.name for shard in writer.shards]
    assert sum(shard.chunks for shard in writer.shards) < 5
    assert {*tmp_path.iterdir()} == {*whole, *(path.with_suffix(".idx") for path in whole)} != set()


def test_a_split_without_a_chunk_writes_no_file(tmp_path: Path) -> None:
    assert write(tmp_path, [], 1 << 20) == []
    assert not list(tmp_path.iterdir())
