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

from pipeline.data import shard_layout
from pipeline.data.manifest import ShardEntry
from pipeline.data.rows import IGNORED_LABEL, RowReader
from pipeline.data.shard_source import LocalShards
from pipeline.errors import WorldError
from tests.data.random_shards import MakeShards, make_manifest


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tokens=st.integers(1, 600),
    seq_len=st.integers(4, 20) | st.just(1),
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
    monkeypatch.setattr(LocalShards, "most_open", 2)
    monkeypatch.setattr(shard_layout, "LAYOUT_BYTES", 2 * 3 * 8)  # two shards of a chunk
    folder, manifest, expected = make_shards(tokens=5000, shard_bytes=1)
    assert len(manifest.train.shards) > 10
    with RowReader(folder, manifest, "train") as reader:
        order = np.random.default_rng(0).permutation(len(expected))
        np.testing.assert_array_equal(reader.read(order), expected[order])
        for row in order[:50].tolist():
            np.testing.assert_array_equal(reader.read([row]), expected[[row]])
        assert len(reader._files) <= 2
        assert len(reader._layouts) <= 2


@pytest.mark.parametrize("damage", ["missing shard", "missing index", "short shard"])
def test_damage_is_named_at_opening(make_shards: MakeShards, damage: str) -> None:
    folder, manifest, _ = make_shards(tokens=5000)
    name = manifest.train.shards[-1].name
    path = folder / (name if "shard" in damage else name.replace(".tar", ".idx"))
    content = path.read_bytes()
    if "missing" in damage:
        path.unlink()
    else:
        path.write_bytes(content[:-512])
    with pytest.raises(WorldError, match=path.name):
        RowReader(folder, manifest, "train")


def test_one_rank_of_a_machine_asks_for_all_sizes_and_every_rank_for_all_names(
    make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, manifest, expected = make_shards(tokens=5000)
    path = folder / manifest.train.shards[-1].name
    path.write_bytes(path.read_bytes()[:-512])
    monkeypatch.setenv("LOCAL_RANK", "1")
    with RowReader(folder, manifest, "train") as reader:
        np.testing.assert_array_equal(reader.read([0]), expected[:1])
        with pytest.raises(WorldError, match=rf"{path.name} has \d+ bytes, its manifest says"):
            reader.read([reader.rows - 1])
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(WorldError, match=rf"{path.name} has \d+ bytes, its manifest says"):
        RowReader(folder, manifest, "train")
    path.unlink()
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(WorldError, match=rf"{path.name} is missing"):
        RowReader(folder, manifest, "train")


@pytest.mark.parametrize("damage", ["missing shard", "missing index", "short shard", "changed index"])
def test_damage_after_opening_is_named_when_the_shard_is_first_used(make_shards: MakeShards, damage: str) -> None:
    folder, manifest, expected = make_shards(tokens=5000)
    name = manifest.train.shards[-1].name
    path = folder / (name if "shard" in damage else name.replace(".tar", ".idx"))
    content = path.read_bytes()
    with RowReader(folder, manifest, "train") as reader:
        if "missing" in damage:
            path.unlink()
        elif damage == "short shard":
            path.write_bytes(content[:-512])
        else:
            path.write_bytes(content.replace(b"tokens.npy 512 ", b"tokens.npy 513 "))
        np.testing.assert_array_equal(reader.read([0]), expected[:1])
        for _ in range(2):
            with pytest.raises(WorldError, match=path.name):
                reader.read([0, reader.rows - 1])
        path.write_bytes(content)
        np.testing.assert_array_equal(reader.read([reader.rows - 1]), expected[-1:])


def test_a_shard_that_is_cut_while_it_is_open_is_named(make_shards: MakeShards) -> None:
    folder, manifest, expected = make_shards(tokens=5000, shard_bytes=1 << 20)
    path = folder / manifest.train.shards[0].name
    with RowReader(folder, manifest, "train") as reader:
        np.testing.assert_array_equal(reader.read([reader.rows - 1]), expected[-1:])
        with open(path, "r+b") as file:
            file.truncate(path.stat().st_size // 2)
        np.testing.assert_array_equal(reader.read([0]), expected[:1])
        with pytest.raises(WorldError, match=r"train-000000\.tar is damaged: it ends at byte"):
            reader.read([reader.rows - 1])


def test_a_token_beyond_the_vocabulary_is_named(make_shards: MakeShards) -> None:
    folder, manifest, expected = make_shards(tokens=5000)
    shard = manifest.train.shards[2]
    path = folder / shard.name
    content = bytearray(path.read_bytes())
    place = content.index(b"\x93NUMPY") + 128 + 2 * 17 * 3  # the second chunk row's first token, and more
    content[place : place + 2] = b"\xff\xff"
    path.write_bytes(content)
    with RowReader(folder, manifest, "train") as reader:
        with pytest.raises(WorldError, match=rf"{shard.name} is damaged: chunk 0 holds token 65535"):
            reader.batch(np.arange(reader.rows))
        np.testing.assert_array_equal(reader.read([0]), expected[:1])


def test_a_flipped_byte_of_a_header_is_named_or_means_nothing(make_shards: MakeShards) -> None:
    folder, manifest, expected = make_shards(tokens=1000, shard_bytes=1 << 20)
    path = folder / manifest.train.shards[0].name
    whole = path.read_bytes()
    second = whole.index(b"\x93NUMPY", whole.index(b"\x93NUMPY") + 1)
    noticed = 0
    for place in range(second, second + 128):
        for flip in (1, 16, 128):
            content = bytearray(whole)
            content[place] ^= flip
            path.write_bytes(content)
            with RowReader(folder, manifest, "train") as reader:
                try:
                    found = reader.read(np.arange(reader.rows))
                except WorldError as error:
                    noticed += path.name in str(error)
                else:
                    np.testing.assert_array_equal(found, expected)
    assert noticed > 3 * 50  # all of the magic and of the dictionary; the rest is spaces


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b" 'fortran_order'", b"B'fortran_order'"),  # keys of two types: TypeError
        (b"'<u2'", b"'<\xff2'"),
        (b"'<u2'", b"'<Z2'"),
        (b"{'descr'", b"{{descr'"),
        (b"'shape': (", b"'shape': ["),
    ],
)
def test_whatever_numpy_raises_for_a_header_is_named(make_shards: MakeShards, before: bytes, after: bytes) -> None:
    folder, manifest, _ = make_shards(tokens=1000, shard_bytes=1 << 20)
    path = folder / manifest.train.shards[0].name
    content = path.read_bytes()
    assert before in content
    path.write_bytes(content.replace(before, after, 1))
    with (
        RowReader(folder, manifest, "train") as reader,
        pytest.raises(WorldError, match=r"train-000000\.tar is damaged: tokens of chunk 0"),
    ):
        reader.read([0])


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


def write_shard(folder: Path, arrays: list[np.ndarray], stem: str = "train-000000") -> ShardEntry:
    """A shard as another program may write it: stock tar and numpy, index by hand."""
    with tarfile.open(folder / f"{stem}.tar", "w") as tar:
        for number, array in enumerate(arrays):
            buffer = io.BytesIO()
            np.save(buffer, array)
            for extension, data in (("tokens.npy", buffer.getvalue()), ("meta.json", b"{}")):
                member = tarfile.TarInfo(f"{number}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    with tarfile.open(folder / f"{stem}.tar") as tar:
        members = tar.getmembers()
    fields = [f"{m.name.split('.', 1)[1]} {m.offset_data} {m.size} {m.name}" for m in members]
    lines = [f"v1.2 {len(arrays)}", *(" ".join(pair) for pair in zip(fields[::2], fields[1::2], strict=True))]
    index = ("\n".join(lines) + "\n").encode()
    (folder / f"{stem}.idx").write_bytes(index)
    return ShardEntry(
        name=f"{stem}.tar",
        chunks=len(arrays),
        rows=sum(len(array) for array in arrays),
        bytes=(folder / f"{stem}.tar").stat().st_size,
        sha256="",
        index_sha256=hashlib.sha256(index).hexdigest(),
    )


@pytest.mark.parametrize("dtype", ["<u2", "<u4", ">u2", "<u8"])
def test_shards_of_another_writer_are_read_as_their_headers_say(tmp_path: Path, dtype: str) -> None:
    rows = np.arange(40 * 9).reshape(40, 9)
    shard = write_shard(tmp_path, [chunk.astype(dtype) for chunk in (rows[:10], rows[10:13], rows[13:])])
    with RowReader(tmp_path, make_manifest([shard], 8, rows.size, 0), "train") as reader:
        np.testing.assert_array_equal(reader.read(np.arange(40)), rows)


def test_a_batch_may_come_from_shards_of_different_types(tmp_path: Path) -> None:
    rows = np.arange(40 * 9).reshape(40, 9)
    types = ("<u2", ">u2", "<u8")
    cuts = (rows[:10], rows[10:25], rows[25:])
    shards = [
        write_shard(tmp_path, [cut.astype(dtype)], f"train-{number:06d}")
        for number, (cut, dtype) in enumerate(zip(cuts, types, strict=True))
    ]
    order = np.random.default_rng(0).permutation(40)
    with RowReader(tmp_path, make_manifest(shards, 8, rows.size, 0), "train") as reader:
        np.testing.assert_array_equal(reader.read(order), rows[order])
        np.testing.assert_array_equal(reader.batch(order)[1].numpy(), rows[order, 1:])


@pytest.mark.parametrize(
    "chunk", [np.zeros((4, 8), "<u2"), np.zeros((4, 9), "<f4"), np.zeros(9, "<u2"), np.zeros((4, 9), "<u2", order="F")]
)
def test_chunks_that_hold_no_rows_of_this_length_are_refused(tmp_path: Path, chunk: np.ndarray) -> None:
    shard = write_shard(tmp_path, [chunk])
    with (
        RowReader(tmp_path, make_manifest([shard], 8, 36, 0), "train") as reader,
        pytest.raises(WorldError, match=r"train-000000\.tar is damaged"),
    ):
        reader.read([0])


def test_a_manifest_that_counts_other_rows_is_noticed(tmp_path: Path) -> None:
    shard = write_shard(tmp_path, [np.zeros((4, 9), "<u2")])
    for wrong in ({"rows": 5}, {"chunks": 2}):
        manifest = make_manifest([shard.model_copy(update=wrong)], 8, 36, 0)
        with (
            RowReader(tmp_path, manifest, "train") as reader,
            pytest.raises(WorldError, match=r"train-000000\.tar does not hold"),
        ):
            reader.read([0])
