"""The index is read back as it was written, and anything else is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.data.index import read_index
from pipeline.errors import WorldError
from tests.data.random_shards import MakeShards


def test_offsets_point_at_the_members(make_shards: MakeShards) -> None:
    folder, manifest, _ = make_shards(tokens=5000)
    assert len(manifest.train.shards) > 1
    for shard in manifest.train.shards:
        path = folder / shard.name
        content = path.read_bytes()
        index = read_index(path.with_suffix(".idx"), path.with_suffix(".idx").read_bytes())
        assert len(index.tokens_offset) == shard.chunks
        for offset, size in zip(index.tokens_offset, index.tokens_bytes, strict=True):
            assert content[offset : offset + 6] == b"\x93NUMPY"
            assert offset + size <= len(content)
        for offset, size in zip(index.meta_offset, index.meta_bytes, strict=True):
            assert content[offset : offset + size].startswith(b'{"sources":')
            assert content[offset + size - 1 : offset + size] == b"}"


def test_members_may_stand_in_any_order_and_others_between_them() -> None:
    line = b"meta.json 1 2 k.meta.json more.txt 3 4 k.more.txt tokens.npy 5 6 k.tokens.npy"
    index = read_index(Path("x.idx"), b"v1.2 1\n" + line + b"\n")
    assert (index.tokens_offset[0], index.tokens_bytes[0], index.meta_offset[0], index.meta_bytes[0]) == (5, 6, 1, 2)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"v1.1 1\ntokens.npy 1 2 k.tokens.npy meta.json 3 4 k.meta.json\n",
        b"v1.2 2\ntokens.npy 1 2 k.tokens.npy meta.json 3 4 k.meta.json\n",
        b"v1.2 1\ntokens.npy 1 2 k.tokens.npy\n",
        b"v1.2 1\ntokens.npy 1 2 k.tokens.npy meta.json 3\n",
        b"v1.2 1\ntokens.npy one 2 k.tokens.npy meta.json 3 4 k.meta.json\n",
    ],
)
def test_what_is_no_index_is_refused_by_name(content: bytes) -> None:
    with pytest.raises(WorldError, match=r"x\.idx is not a v1\.2 index"):
        read_index(Path("x.idx"), content)
