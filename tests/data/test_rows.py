"""Any row of a split, by its number, and nothing taken for a row that is none."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pipeline.data.rows
from pipeline.data.manifest import ShardEntry
from pipeline.data.rows import IGNORED_LABEL, RowReader
from pipeline.errors import WorldError
from tests.data.random_shards import MakeShards, make_manifest


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tokens=st.integers(1, 3000),
    seq_len=st.integers(1, 20),
    rows_per_chunk=st.integers(1, 9),
    shard_bytes=st.sampled_from([1, 4096, 1 << 20]),
    dtype=st.sampled_from([np.uint16, np.uint32]),
    data=st.data(),
)
def test_rows_are_those_that_were_written(
    make_shards: MakeShards, tokens: int, seq_len: int, rows_per_chunk: int, shard_bytes: int, dtype: type, data
) -> None:
    folder, manifest, expected = make_shards(
        tokens=tokens, seq_len=seq_len, rows_per_chunk=rows_per_chunk, shard_bytes=shard_bytes, dtype=dtype
    )
    with RowReader(folder, manifest, "train") as reader:
        assert reader.rows == len(expected)
        indices = data.draw(st.lists(st.integers(0, len(expected) - 1), max_size=12))
        rows = reader.read(indices)
        assert rows.dtype == np.int64
        np.testing.assert_array_equal(rows, expected[indices])
        np.testing.assert_array_equal(reader.read(np.arange(reader.rows)), expected)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tokens=st.integers(1, 200), seq_len=st.integers(1, 9))
def test_labels_are_shifted_and_padding_counts_in_no_loss(make_shards: MakeShards, tokens: int, seq_len: int) -> None:
    folder, manifest, expected = make_shards(tokens=tokens, seq_len=seq_len)
    with RowReader(folder, manifest, "train") as reader:
        order = np.arange(reader.rows)[::-1]
        inputs, labels = reader.batch(order)
    assert inputs.dtype == labels.dtype == torch.int64
    assert inputs.shape == labels.shape == (len(expected), seq_len)
    np.testing.assert_array_equal(inputs.numpy(), expected[order][:, :-1])
    flat_place = order[:, None] * (seq_len + 1) + np.arange(1, seq_len + 1)
    wanted = np.where(flat_place < tokens, expected[order][:, 1:], IGNORED_LABEL)
    np.testing.assert_array_equal(labels.numpy(), wanted)


def test_inputs_and_labels_share_no_memory(make_shards: MakeShards) -> None:
    folder, manifest, _ = make_shards(tokens=100)
    with RowReader(folder, manifest, "train") as reader:
        inputs, labels = reader.batch([0])
        inputs.zero_()
        assert labels.any()
        assert reader.batch([0])[0].any()


def test_numbers_beyond_the_rows_are_refused(make_shards: MakeShards) -> None:
    folder, manifest, _ = make_shards(tokens=100)
    with RowReader(folder, manifest, "train") as reader:
        for wrong in (-1, reader.rows):
            with pytest.raises(IndexError):
                reader.read([0, wrong])


def test_more_shards_than_may_be_open_at_once(make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.data.rows, "OPEN_SHARDS", 2)
    folder, manifest, expected = make_shards(tokens=5000, shard_bytes=1)
    assert len(manifest.train.shards) > 10
    with RowReader(folder, manifest, "train") as reader:
        order = np.random.default_rng(0).permutation(len(expected))
        np.testing.assert_array_equal(reader.read(order), expected[order])


@pytest.mark.parametrize("damage", ["missing shard", "missing index", "short shard", "changed index"])
def test_damage_is_named_at_opening(make_shards: MakeShards, damage: str) -> None:
    folder, manifest, _ = make_shards(tokens=5000)
    name = manifest.train.shards[-1].name
    path = folder / (name if "shard" in damage else name.replace(".tar", ".idx"))
    content = path.read_bytes()
    if "missing" in damage:
        path.unlink()
    elif damage == "short shard":
        path.write_bytes(content[:-512])
    else:
        path.write_bytes(content.replace(b"tokens.npy 512 ", b"tokens.npy 513 "))
    with pytest.raises(WorldError, match=path.name):
        RowReader(folder, manifest, "train")


def test_a_header_that_says_something_else_is_noticed_when_read(make_shards: MakeShards) -> None:
    folder, manifest, expected = make_shards(tokens=5000, shard_bytes=1 << 20)
    path = folder / manifest.train.shards[0].name
    content = bytearray(path.read_bytes())
    second = content.index(b"\x93NUMPY", 2048)
    place = content.index(b"'<u2'", second)
    content[place : place + 5] = b"'<u4'"
    path.write_bytes(content)
    with RowReader(folder, manifest, "train") as reader:
        np.testing.assert_array_equal(reader.read([0]), expected[:1])
        with pytest.raises(WorldError, match=r"train-000000\.tar is damaged: tokens of chunk 1"):
            reader.read([8])


def write_shard(folder: Path, arrays: list[np.ndarray]) -> ShardEntry:
    """A shard as another program may write it: stock tar and numpy, index by hand."""
    with tarfile.open(folder / "train-000000.tar", "w") as tar:
        for number, array in enumerate(arrays):
            buffer = io.BytesIO()
            np.save(buffer, array)
            for extension, data in (("tokens.npy", buffer.getvalue()), ("meta.json", b"{}")):
                member = tarfile.TarInfo(f"{number}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    with tarfile.open(folder / "train-000000.tar") as tar:
        members = tar.getmembers()
    fields = [f"{m.name.split('.', 1)[1]} {m.offset_data} {m.size} {m.name}" for m in members]
    lines = [f"v1.2 {len(arrays)}", *(" ".join(pair) for pair in zip(fields[::2], fields[1::2], strict=True))]
    index = ("\n".join(lines) + "\n").encode()
    (folder / "train-000000.idx").write_bytes(index)
    return ShardEntry(
        name="train-000000.tar",
        chunks=len(arrays),
        rows=sum(len(array) for array in arrays),
        bytes=(folder / "train-000000.tar").stat().st_size,
        sha256="",
        index_sha256=hashlib.sha256(index).hexdigest(),
    )


@pytest.mark.parametrize("dtype", ["<u2", "<u4", ">u2", "<u8"])
def test_shards_of_another_writer_are_read_as_their_headers_say(tmp_path: Path, dtype: str) -> None:
    rows = np.arange(40 * 9).reshape(40, 9)
    shard = write_shard(tmp_path, [chunk.astype(dtype) for chunk in (rows[:10], rows[10:13], rows[13:])])
    with RowReader(tmp_path, make_manifest([shard], 8, rows.size, 0), "train") as reader:
        np.testing.assert_array_equal(reader.read(np.arange(40)), rows)


@pytest.mark.parametrize(
    "chunk", [np.zeros((4, 8), "<u2"), np.zeros((4, 9), "<f4"), np.zeros(9, "<u2"), np.zeros((4, 9), "<u2", order="F")]
)
def test_chunks_that_hold_no_rows_of_this_length_are_refused(tmp_path: Path, chunk: np.ndarray) -> None:
    shard = write_shard(tmp_path, [chunk])
    with pytest.raises(WorldError, match=r"train-000000\.tar is damaged"):
        RowReader(tmp_path, make_manifest([shard], 8, 36, 0), "train")


def test_a_manifest_that_counts_other_rows_is_noticed(tmp_path: Path) -> None:
    shard = write_shard(tmp_path, [np.zeros((4, 9), "<u2")])
    for wrong in ({"rows": 5}, {"chunks": 2}):
        with pytest.raises(WorldError, match="does not hold"):
            RowReader(tmp_path, make_manifest([shard.model_copy(update=wrong)], 8, 36, 0), "train")
