"""Token files give every document exactly once, however they are cut; damage and other tokenizers are noticed."""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError, WorldError
from pipeline.recipe_tokenize import TokenFilesSource
from tokenization.documents import Rejection, SliceEnd, SourceReader, TokenizedDocument
from tokenization.sources import megatron_index, token_streams
from tokenization.sources.token_files import TokenFilesReader

END = 0
VOCABULARY = 1000


def make_reader(path: Path | str, seed: int = 0, **fields: Any) -> TokenFilesReader:
    fields = {"validation_share": 1e-12, **fields}
    source = TokenFilesSource(kind="tokens", name="t", train=[str(path)], **fields)
    return TokenFilesReader(source, seed, END, VOCABULARY, lambda ids: 3 * len(ids))


def read(reader: SourceReader, part_bytes: int = 1 << 30, order: Sequence[int] | None = None) -> list:
    """All items in reading order; the slices are read in the given order."""
    slices = reader.slices(part_bytes)
    items: dict[int, list] = {}
    for number in range(len(slices)) if order is None else sorted(range(len(slices)), key=lambda n: order[n % 7]):
        advanced: list[int] = []
        items[number] = list(reader.read(slices[number], advanced.append))
        documents = [item for item in items[number] if isinstance(item, TokenizedDocument)]
        assert sum(advanced) == sum(document.text_bytes for document in documents)
        end = items[number][-1]
        assert isinstance(end, SliceEnd)
        assert [item.line for item in items[number][:-1]] == list(range(1, end.records + 1))
        assert (end.sha256 is None) == (slices[number].end is not None)
    return [item for number in range(len(slices)) for item in items[number]]


def ids_of(items: list) -> list[list[int]]:
    """Documents' ids; an empty list where one was refused for being empty."""
    ids = []
    for item in items:
        if isinstance(item, TokenizedDocument):
            assert item.ids.dtype.kind == "u" and item.ids.dtype.isnative
            ids.append(item.ids.tolist())
        elif isinstance(item, Rejection):
            assert item.reason == "empty_document"
            ids.append([])
    return ids


def joined(documents: Sequence[Sequence[int]], closed: bool = True) -> list[int]:
    tokens = [token for document in documents for token in [*document, END]]
    return tokens if closed else tokens[:-1]


def write_flat(path: Path, tokens: Sequence[int], dtype: str = "<u2") -> Path:
    array = np.array(tokens, dtype)
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".bin":
        array.tofile(path)
    else:
        half = len(array) // 2
        with pa.OSFile(str(path), "wb") as sink:
            schema = pa.schema({"input_ids": pa.list_(pa.from_numpy_dtype(np.dtype(dtype)))})
            with pa.ipc.new_stream(sink, schema) as writer:
                for rows in ([array[:half]], [array[half:], array[:0]]):
                    writer.write_batch(pa.record_batch([pa.array(rows, schema.field(0).type)], schema=schema))
    return path


def write_indexed(path: Path, documents: Sequence[Sequence[Sequence[int]]], code: int = 8, dtype: str = "<u2") -> Path:
    """`documents` of sequences of ids, as Megatron's tools lay them out."""
    sequences = [sequence for document in documents for sequence in document]
    np.array([token for sequence in sequences for token in sequence], dtype).tofile(path)
    sizes = [len(sequence) for sequence in sequences]
    starts = np.cumsum([0, *sizes]) * np.dtype(dtype).itemsize
    entries = np.cumsum([0, *(len(document) for document in documents)])
    path.with_suffix(".idx").write_bytes(
        b"MMIDIDX\x00\x00"
        + struct.pack("<QBQQ", 1, code, len(sizes), len(entries))
        + np.array(sizes, "<i4").tobytes()
        + starts[:-1].astype("<i8").tobytes()
        + entries.astype("<i8").tobytes()
    )
    return path


DOCUMENTS = st.lists(st.lists(st.integers(1, VOCABULARY - 1), max_size=12), max_size=20)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    documents=DOCUMENTS,
    closed=st.booleans(),
    suffix=st.sampled_from([".npy", ".bin", ".arrow"]),
    part_bytes=st.integers(1, 300),
    order=st.permutations(range(7)),
    block=st.integers(1, 20),
)
def test_flat_files_give_each_document_once_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, documents, closed, suffix, part_bytes, order, block
) -> None:
    tokens = joined(documents, closed)
    path = write_flat(tmp_path / f"x{suffix}", tokens)
    with monkeypatch.context() as patch:
        patch.setattr(token_streams, "BLOCK_TOKENS", block)
        items = read(make_reader(path), part_bytes, order)
    # Where the last mark is missing, an empty last document leaves no trace; behind the last mark nothing begins.
    expected = documents if closed or not documents or documents[-1] else documents[:-1]
    assert ids_of(items) == expected
    whole = read(make_reader(path))
    assert [place.detail for place in items if isinstance(place, Rejection)] == [
        place.detail for place in whole if isinstance(place, Rejection)
    ]


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    documents=st.lists(st.lists(st.lists(st.integers(1, VOCABULARY - 1), max_size=6), max_size=4), max_size=15),
    closed=st.lists(st.booleans(), min_size=15, max_size=15),
    part_bytes=st.integers(1, 300),
    order=st.permutations(range(7)),
    block=st.integers(1, 9),
)
def test_indexed_files_give_each_document_once_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, documents, closed, part_bytes, order, block
) -> None:
    stored = [
        [*document, [END]] if mark and document else document for document, mark in zip(documents, closed, strict=False)
    ]
    path = write_indexed(tmp_path / "x.bin", stored)
    with monkeypatch.context() as patch:
        patch.setattr(megatron_index, "BLOCK", block)
        items = read(make_reader(path), part_bytes, order)
    assert ids_of(items) == [[token for sequence in document for token in sequence] for document in documents]


def test_marks_inside_an_indexed_document_cut_it(tmp_path: Path) -> None:
    path = write_indexed(tmp_path / "x.bin", [[[1, 2, END, 3], [4, END, END]], [[END]], [[5]]])
    assert ids_of(read(make_reader(path))) == [[1, 2], [3, 4], [], [], [5]]


def test_sequences_may_lie_in_any_order(tmp_path: Path) -> None:
    path = write_indexed(tmp_path / "x.bin", [[[1, 2], [3]], [[4, 5, END]]])
    index = path.with_suffix(".idx")
    content = bytearray(index.read_bytes())
    content[34 : 34 + 12] = np.array([1, 2, 3], "<i4").tobytes()
    content[46 : 46 + 24] = np.array([10, 0, 4], "<i8").tobytes()
    index.write_bytes(content)
    # The first document is now (mark), (1, 2): an empty one and another; the second is (3, 4, 5).
    assert ids_of(read(make_reader(path))) == [[], [1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("x.npy", "<u2"),
        ("x.npy", ">u2"),
        ("x.npy", "<i4"),
        ("x.npy", "<i8"),
        ("x.npy", "u1"),
        ("x.bin", "<u2"),
        ("x.bin", "<u4"),
        ("x.arrow", "<u2"),
        ("x.arrow", "<i8"),
    ],
)
def test_every_type_of_integer_is_read(tmp_path: Path, name: str, dtype: str) -> None:
    path = write_flat(tmp_path / name, joined([[1, 2, 255], [4]]), dtype)
    token_dtype = "uint32" if dtype == "<u4" else "uint16"
    assert ids_of(read(make_reader(path, token_dtype=token_dtype))) == [[1, 2, 255], [4]]


@pytest.mark.parametrize(("code", "dtype"), [(8, "<u2"), (4, "<i4"), (5, "<i8"), (3, "<i2"), (1, "u1")])
def test_every_type_of_an_index_is_read(tmp_path: Path, code: int, dtype: str) -> None:
    path = write_indexed(tmp_path / "x.bin", [[[1, 2, 100, END]], [[3]]], code, dtype)
    assert ids_of(read(make_reader(path))) == [[1, 2, 100], [3]]


def test_ids_are_views_of_the_mapped_file(tmp_path: Path) -> None:
    path = write_flat(tmp_path / "x.npy", joined([[1, 2], [3]]))
    document = read(make_reader(path))[0]
    assert not document.ids.flags.owndata and not document.ids.flags.writeable


def test_rows_of_an_array_and_of_a_saved_data_set_are_joined(tmp_path: Path) -> None:
    tokens = joined([[1, 2, 3, 4, 5], [6], [7, 8, 9]])
    rows = np.array(tokens, np.uint16).reshape(3, 4)
    np.save(tmp_path / "x.npy", rows)
    features = datasets.Features({"input_ids": datasets.List(datasets.Value("uint16"))})
    datasets.Dataset.from_dict({"input_ids": rows.tolist()}, features=features).save_to_disk(str(tmp_path / "saved"))
    for pattern in (tmp_path / "x.npy", tmp_path / "saved" / "*.arrow"):
        assert ids_of(read(make_reader(pattern), part_bytes=9)) == [[1, 2, 3, 4, 5], [6], [7, 8, 9]]


def test_the_validation_share_does_not_depend_on_the_slices(tmp_path: Path) -> None:
    documents = [[number % 900 + 1] * (number % 5 + 1) for number in range(2000)]
    path = write_flat(tmp_path / "x.bin", joined(documents))
    reader = make_reader(path, validation_share=0.2)
    splits = [item.split for item in read(reader) if isinstance(item, TokenizedDocument)]
    assert splits == [item.split for item in read(reader, 500) if isinstance(item, TokenizedDocument)]
    assert 300 < splits.count("validation") < 500
    reseeded = make_reader(path, 1, validation_share=0.2)
    assert splits != [item.split for item in read(reseeded) if isinstance(item, TokenizedDocument)]


def test_validation_files_come_last(tmp_path: Path) -> None:
    write_flat(tmp_path / "b.npy", joined([[1]]))
    write_flat(tmp_path / "a.bin", joined([[2]]))
    write_flat(tmp_path / "v.npy", joined([[3]]))
    reader = make_reader(tmp_path / "[ab].*", validation=[str(tmp_path / "v.npy")], validation_share=0.0)
    items = [item for item in read(reader) if isinstance(item, TokenizedDocument)]
    assert [(item.ids.tolist(), item.split) for item in items] == [
        ([2], "train"),
        ([1], "train"),
        ([3], "validation"),
    ]
    assert reader.text_bytes == 6 * 4


def test_the_last_slice_gives_size_and_hash(tmp_path: Path) -> None:
    flat = write_flat(tmp_path / "x.npy", joined([[1, 2], [3], [4]]))
    items = read(make_reader(flat), part_bytes=8)
    ends = [item for item in items if isinstance(item, SliceEnd)]
    assert len(ends) > 2 and all(end.bytes == 0 and end.sha256 is None for end in ends[:-1])
    assert (ends[-1].bytes, ends[-1].sha256) == (
        flat.stat().st_size,
        hashlib.sha256(flat.read_bytes()).hexdigest(),
    )
    pair = write_indexed(tmp_path / "y.bin", [[[1]]])
    both = pair.read_bytes() + pair.with_suffix(".idx").read_bytes()
    end = read(make_reader(pair))[-1]
    assert (end.bytes, end.sha256) == (len(both), hashlib.sha256(both).hexdigest())


def test_an_empty_flat_file_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.bin").touch()
    assert read(make_reader(tmp_path / "x.bin")) == [SliceEnd(0, 0, hashlib.sha256().hexdigest())]
    np.save(tmp_path / "y.npy", np.empty((0, 5), np.uint16))
    assert ids_of(read(make_reader(tmp_path / "y.npy"))) == []


@pytest.mark.parametrize("negative", [False, True])
def test_an_id_beyond_the_vocabulary_is_named_with_its_place(tmp_path: Path, negative: bool) -> None:
    tokens = joined([[1, 2], [3, 4]])
    tokens[4] = -1 if negative else VOCABULARY
    path = write_flat(tmp_path / "x.npy", tokens, "<i4" if negative else "<u2")
    shown = 2**32 - 1 if negative else VOCABULARY
    with pytest.raises(WorldError, match=rf"x\.npy: token 4 is {shown}, .* 1,000 entries: .*another tokenizer"):
        read(make_reader(path))
    pair = write_indexed(tmp_path / "y.bin", [[[1, 2]], [[3, VOCABULARY]]])
    with pytest.raises(WorldError, match=r"y\.bin: token 3 is 1000"):
        read(make_reader(pair))


@pytest.mark.parametrize(
    ("name", "cut"),
    # A flat .bin that ends between two tokens looks whole.
    [("x.bin", 1), *((name, cut) for name in ("x.npy", "x.arrow") for cut in (1, 20, 100))],
)
def test_a_flat_file_cut_short_is_named(tmp_path: Path, name: str, cut: int) -> None:
    path = write_flat(tmp_path / name, joined([[1, 2, 3]] * 100))
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(WorldError, match=name):
        make_reader(path)


def test_an_arrow_stream_cut_between_two_batches_is_noticed(tmp_path: Path) -> None:
    path = write_flat(tmp_path / "x.arrow", joined([[1, 2, 3]] * 10))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(WorldError, match=r"x\.arrow .*ends before its data does"):
        make_reader(path)


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
@pytest.mark.parametrize("change", [-1, -2, -30, 2])
def test_a_pair_that_does_not_fit_is_named(tmp_path: Path, suffix: str, change: int) -> None:
    path = write_indexed(tmp_path / "x.bin", [[[1, 2]], [[3, 4]], [[5] * 20]]).with_suffix(suffix)
    content = path.read_bytes()
    path.write_bytes(content[:change] if change < 0 else content + b"\0" * change)
    with pytest.raises(WorldError, match=r"x\.(bin|idx)"):
        make_reader(tmp_path / "x.bin")


@pytest.mark.parametrize(
    ("place", "value", "error"),
    [
        (0, b"TNTIDX\x00\x00\x00", WorldError),  # the older index format
        (9, struct.pack("<Q", 2), WorldError),
        (17, b"\x06", UserError),
        (34, struct.pack("<i", -2), WorldError),
        (42, struct.pack("<q", 400), WorldError),
        (42, struct.pack("<q", -4), WorldError),
        (42, struct.pack("<q", 1), WorldError),
        (58, struct.pack("<q", 1), WorldError),
        (66, struct.pack("<q", 9), WorldError),
        (74, struct.pack("<q", 1), WorldError),
    ],
)
def test_a_damaged_index_is_named(tmp_path: Path, place: int, value: bytes, error: type[Exception]) -> None:
    path = write_indexed(tmp_path / "x.bin", [[[1, 2]], [[3, 4]]])
    index = path.with_suffix(".idx")
    content = bytearray(index.read_bytes())
    content[place : place + len(value)] = value
    index.write_bytes(content)
    with pytest.raises(error, match=r"x\.idx"):
        read(make_reader(path))


@pytest.mark.parametrize(
    "array",
    [np.ones(3, np.float32), np.ones((2, 2, 2), np.uint16), np.asfortranarray(np.ones((3, 2), np.uint16))],
)
def test_an_array_that_is_no_run_of_tokens_is_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(UserError, match=r"x\.npy holds an array"):
        make_reader(tmp_path / "x.npy")


def test_what_is_no_npy_is_named(tmp_path: Path) -> None:
    for content in (b"", b"plain words", b"\x93NUMPY\x01\x00"):
        (tmp_path / "x.npy").write_bytes(content)
        with pytest.raises(WorldError, match=r"x\.npy is not a \.npy file, or is damaged"):
            make_reader(tmp_path / "x.npy")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"ids": [[1]]}, "no column input_ids: it has ids"),
        ({"input_ids": ["text"]}, "lists of whole numbers"),
        ({"input_ids": [[1, 2, 3]], "attention_mask": [[1, 1, 0]]}, "token 2 is padding"),
        ({"input_ids": [[1, 2, 3]], "attention_mask": [[True, False, True]]}, "token 1 is padding"),
        ({"input_ids": [[1, 2, 3]], "attention_mask": [1]}, "attention_mask holds int64: lists of 0 and 1"),
        ({"input_ids": [[1, 2]], "attention_mask": [["1", "0"]]}, "attention_mask holds list.*lists of 0 and 1"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1.0, 0.0]]}, "attention_mask holds list.*lists of 0 and 1"),
        ({"input_ids": [[1, 2, 3]], "attention_mask": [[1, None, 1]]}, "attention_mask has gaps"),
    ],
)
def test_an_arrow_file_without_full_rows_of_ids_is_refused(tmp_path: Path, columns: dict, said: str) -> None:
    table = pa.table(columns)
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(UserError, match=rf"x\.arrow.*{said}"):
        read(make_reader(tmp_path / "x.arrow"))


@pytest.mark.parametrize("name", ["input_ids", "attention_mask"])
def test_an_arrow_file_with_two_columns_of_one_name_is_refused(tmp_path: Path, name: str) -> None:
    names = ["input_ids", "attention_mask", name]
    table = pa.table([pa.array([[1, 1]])] * 3, names=names)
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(UserError, match=rf"x\.arrow has 2 columns of the name {name}: rename all but one"):
        make_reader(tmp_path / "x.arrow")


def test_an_arrow_file_that_cannot_be_mapped_is_refused(tmp_path: Path) -> None:
    table = pa.table({"input_ids": [[1] * 1000] * 1000, "attention_mask": [[1] * 1000] * 1000})
    for compression in (None, "zstd"):
        options = pa.ipc.IpcWriteOptions(compression=compression)
        path = tmp_path / f"{compression}.arrow"
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema, options=options) as writer:
            writer.write_table(table)
    assert len(ids_of(read(make_reader(tmp_path / "None.arrow")))[0]) == 1_000_000
    with pytest.raises(UserError, match=r"zstd\.arrow is compressed"):
        make_reader(tmp_path / "zstd.arrow")


@pytest.mark.parametrize("name", ["x.npy", "x.arrow", "x.idx"])
def test_a_changed_byte_is_harmless_or_named(tmp_path: Path, name: str) -> None:
    """Neither format has checksums: an id may change unseen, but nothing else may happen than a message."""
    target = tmp_path / name
    if name == "x.idx":
        path = write_indexed(tmp_path / "x.bin", [[[1, 2], [3]], [[4]]] * 10)
    else:
        path = write_flat(target, joined([[1, 2, 3]] * 20))
    whole = target.read_bytes()
    chance = random.Random(0)
    messages = []
    for _ in range(60):
        content = bytearray(whole)
        content[chance.randrange(len(content))] ^= chance.randrange(1, 256)
        target.write_bytes(content)
        try:
            read(make_reader(path), 60)
        except (UserError, WorldError) as error:
            messages.append(str(error))
    assert len(messages) > 10
    assert all(str(tmp_path) in message and "\n" not in message for message in messages)


def test_files_are_found_or_named(tmp_path: Path) -> None:
    (tmp_path / "x.txt").touch()
    with pytest.raises(UserError, match="no file matches"):
        make_reader(tmp_path / "*.npy")
    with pytest.raises(UserError, match="no such file"):
        make_reader(tmp_path / "y.npy")
    with pytest.raises(UserError, match=r"ends in \.npy, \.bin, \.arrow"):
        make_reader(tmp_path / "x.txt")


def test_a_file_that_changes_after_the_plan_stops_the_work(tmp_path: Path) -> None:
    path = write_flat(tmp_path / "x.bin", joined([[1, 2], [3]]))
    reader = make_reader(path)
    piece = reader.slices(1 << 20)[0]
    write_flat(path, joined([[1, 2], [3], [4]]))
    with pytest.raises(WorldError, match=r"x\.bin has changed"):
        list(reader.read(piece, lambda _: None))
