"""Tables of rows of any size are read a little at a time; what is ambiguous in them is told."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError
from pipeline.recipe_tokenize import DatasetSource
from tokenization.documents import Document, Rejection, pieces_of
from tokenization.sources import dataset_source
from tokenization.sources.dataset_source import open_dataset
from tokenization.sources.table_files import BATCH_BYTES, BATCH_ROWS, ArrowTable, ParquetTable, TableFile, texts_of


def write(path: Path, table: pa.Table, group_rows: int = 1 << 20) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=group_rows)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=group_rows)
    return path


def open_table(path: Path) -> TableFile:
    return ParquetTable(path) if path.suffix == ".parquet" else ArrowTable(path)


def read(path: Path, **fields) -> list:
    source = DatasetSource(
        kind="dataset", name="d", path=path.suffix[1:], files=[str(path)], validation_share=1e-12, **fields
    )
    reader = open_dataset(source, 0)
    return [item for piece in reader.slices(1 << 40) for item in reader.read(piece, lambda _: None)][:-1]


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow"])
def test_a_batch_holds_about_a_megabyte_however_large_the_rows_are(tmp_path: Path, name: str) -> None:
    texts = [f"{number:06d}" * 50_000 for number in range(30)]
    path = write(tmp_path / name, pa.table({"text": texts, "n": range(30)}))
    batches = list(open_table(path).batches(3, 29, [("text",)]))
    assert [text for batch in batches for text in texts_of(batch.column("text"))] == [
        text.encode() for text in texts[3:29]
    ]
    assert max(batch.num_rows for batch in batches) <= 3
    large = write(tmp_path / f"large.{name[2:]}", pa.table({"text": ["x" * 2 * BATCH_BYTES] * 3}))
    # What Parquet keeps once, in a dictionary, counts once.
    assert max(batch.num_rows for batch in open_table(large).batches(0, None, [("text",)])) <= 2
    small = write(tmp_path / f"small.{name[2:]}", pa.table({"text": ["x"] * 1000}))
    assert next(batch.num_rows for batch in open_table(small).batches(0, None, [("text",)])) == BATCH_ROWS


def test_groups_of_small_and_of_large_rows_get_batches_of_their_own(tmp_path: Path) -> None:
    texts = [f"{number}" for number in range(100)] + [f"{number:06d}" * 500_000 for number in range(5)]
    table = pa.table({"text": texts})
    with pq.ParquetWriter(tmp_path / "x.parquet", table.schema) as writer:
        writer.write_table(table.slice(0, 100))
        writer.write_table(table.slice(100))
    batches = list(ParquetTable(tmp_path / "x.parquet").batches(0, None, [("text",)]))
    assert [batch.num_rows for batch in batches] == [100, 1, 1, 1, 1, 1]


def test_texts_are_copied_one_by_one() -> None:
    """Beside the batch, one text is held, not as many as the batch has."""
    values = pa.array(["a" * 1000, None, "b"])
    for kind in (values, values.dictionary_encode(), values.cast(pa.large_string()), values.cast(pa.string_view())):
        texts = texts_of(kind)
        assert next(texts) == b"a" * 1000
        assert list(texts) == [None, b"b"]
    assert list(texts_of(pa.nulls(2))) == [None, None]
    damaged = pa.DictionaryArray.from_arrays(
        pa.array([0, None, 1]), pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff", b"ok"]).buffers())
    )
    assert list(texts_of(damaged)) == [b"\xff", None, b"ok"]


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow", "x.json", "x.csv"])
def test_a_large_text_comes_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(dataset_source, "LONG_TEXT_BYTES", 10)
    text = "aé東🙂" * 300_000
    path = tmp_path / name
    if path.suffix in (".parquet", ".arrow"):
        write(path, pa.table({"text": ["short", text]}))
    elif path.suffix == ".json":
        path.write_text(f'{{"text": "short"}}\n{{"text": "{text}"}}\n', encoding="utf-8")
    else:
        path.write_text(f"text\nshort\n{text}\n", encoding="utf-8")
    short, long = read(path)
    assert isinstance(short, Document) and isinstance(long, Document)
    assert short.text == "short" and not isinstance(long.text, str)
    assert ("".join(pieces_of(long.text)), long.text_bytes) == (text, len(text.encode()))
    assert len(list(pieces_of(long.text))) > 1


def test_a_text_beyond_all_measure_is_refused_and_its_neighbours_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_source, "LONGEST_LINE_BYTES", 20)
    for name in ("x.parquet", "x.arrow"):
        before, refused, behind = read(write(tmp_path / name, pa.table({"text": ["a", "x" * 21, "x" * 20]})))
        assert isinstance(refused, Rejection)
        assert (refused.reason, refused.detail) == ("line_too_long", "21 bytes of text, more than 20")
        assert isinstance(before, Document) and isinstance(behind, Document)


def test_a_large_text_that_is_no_utf8_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_source, "LONG_TEXT_BYTES", 10)
    raw = pa.array([b"a" * 50 + b"\xff" + b"a" * 50], pa.binary())
    table = pa.table({"text": pa.Array.from_buffers(pa.string(), 1, raw.buffers())})
    for name in ("x.parquet", "x.arrow"):
        assert [item.reason for item in read(write(tmp_path / name, table))] == ["not_utf8"]


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow"])
def test_two_columns_of_one_name_are_told(tmp_path: Path, name: str) -> None:
    one, other = pa.array(["a", "b"]), pa.array(["c", "d"])
    path = write(tmp_path / name, pa.table([one, other, one], names=["text", "s", "text"]))
    with pytest.raises(UserError, match=rf"{name} has 2 columns of the name text: rename all but one"):
        read(path)
    # Where nobody asks for them they do no harm.
    assert [item.text for item in read(path, text_field="s")] == ["c", "d"]
    inner = pa.StructArray.from_arrays([one], names=["text"])
    both = write(tmp_path / f"nested.{name[2:]}", pa.table([inner, other, inner], names=["body", "s", "body"]))
    with pytest.raises(UserError, match="has 2 columns of the name body"):
        read(both, text_field="body.text")


def test_two_fields_of_one_name_inside_a_column_are_told(tmp_path: Path) -> None:
    kind = pa.struct([("text", pa.string()), ("text", pa.string())])
    path = write(
        tmp_path / "x.arrow",
        pa.table({"body": pa.Array.from_buffers(kind, 1, [None], children=[pa.array(["a"]), pa.array(["b"])])}),
    )
    with pytest.raises(UserError, match=r"has 2 columns of the name body\.text"):
        read(path, text_field="body.text")
