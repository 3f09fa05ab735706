"""Records that are too large to hold are told before they are held, and only those."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError, WorldError
from pipeline.recipe_tokenize import DatasetSource
from tokenization.documents import Document
from tokenization.sources import record_sizes
from tokenization.sources.dataset_source import DatasetFilesReader, open_dataset
from tokenization.sources.record_sizes import check_json_records, csv_records, csv_rows_at_once

LIMIT = 200


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_sizes, "LONGEST_RECORD_BYTES", LIMIT)
    monkeypatch.setattr(record_sizes, "LONGEST_ARRAY_BYTES", 2 * LIMIT)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["x.json", "x.json.gz"])
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"x" * 50 + b"\n" + b"y" * (LIMIT + 1), "the record at byte 51"),
        (b"x" * 10 * LIMIT + b"\n", "the record at byte 0"),
        (b"[" + b"1,\n" * LIMIT + b"1]", "it is one array and"),
        (b"\n\n  [" + b"1,\n" * LIMIT + b"1]", "it is one array and"),
        (b"\xef\xbb\xbf[" + b"1,\n" * LIMIT + b"1]", "it is one array and"),
    ],
)
def test_a_large_json_record_is_refused(
    tmp_path: Path, small_limit: None, name: str, content: bytes, what: str
) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(UserError, match=rf"{name}: {what} has more than .* kind: jsonl"):
        check_json_records(path)


def test_small_json_records_pass_however_many(tmp_path: Path, small_limit: None) -> None:
    lines = (b"x" * (LIMIT - 1) + b"\n") * 20
    check_json_records(write(tmp_path / "x.json", lines))
    check_json_records(write(tmp_path / "x.json.gz", lines))
    check_json_records(write(tmp_path / "array.json", b"[" + b"1," * 150 + b"1]"))
    check_json_records(write(tmp_path / "behind.json", lines + b"y" * 10 * LIMIT), end=5 * LIMIT)


FIELDS = st.text(st.sampled_from('ab ,"\n\ré🙂'), max_size=60)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=st.lists(st.lists(FIELDS, min_size=2, max_size=2), min_size=1, max_size=20), most=st.integers(1, 8))
def test_csv_rows_at_once_hold_no_more_than_the_limit(tmp_path: Path, small_limit: None, records, most) -> None:
    text = io.StringIO()
    csv.writer(text).writerows(records)
    path = write(tmp_path / "x.csv", text.getvalue().encode())
    sizes = [sum(len(field.encode()) for field in record) for record in records]
    assert list(csv_records(path, ",", "utf-8")) == records
    if max(sizes) > LIMIT:
        with pytest.raises(UserError, match=r"x\.csv: a .* has more than"):
            csv_rows_at_once(path, ",", most)
        return
    rows = csv_rows_at_once(path, ",", most)
    assert 1 <= rows <= most
    assert all(sum(sizes[first : first + rows]) <= LIMIT for first in range(len(sizes)))
    if all(sum(sizes[first : first + most]) <= LIMIT for first in range(len(sizes))):
        assert rows == most


@pytest.mark.parametrize(
    "content", [b'a,"' + b"x" * 3 * LIMIT + b'"\n', b"a," + b"x" * 3 * LIMIT, b"a,b\n" + b"," * LIMIT * 2]
)
def test_a_large_csv_record_is_refused(tmp_path: Path, small_limit: None, content: bytes) -> None:
    for name in ("x.csv", "x.csv.gz"):
        with pytest.raises(UserError, match=rf"{name}: a \w+ has more than .* or Parquet"):
            csv_rows_at_once(write(tmp_path / name, content), ",", 4)


def test_the_process_keeps_its_own_limit_of_csv_fields(tmp_path: Path, small_limit: None) -> None:
    before = csv.field_size_limit()
    csv_rows_at_once(write(tmp_path / "x.csv", b"a,b\n"), ",", 4)
    assert csv.field_size_limit() == before


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorldError, match=r"gone\.json cannot be read"):
        check_json_records(tmp_path / "gone.json")


def open_files(kind: str, path: Path) -> DatasetFilesReader:
    source = DatasetSource(kind="dataset", name="d", path=kind, files=[str(path)], validation_share=1e-12)
    reader = open_dataset(source, 0)
    assert isinstance(reader, DatasetFilesReader)
    return reader


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_the_reader_refuses_and_takes_large_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """The limit of Python's csv, 131,072 characters, is no limit here."""
    texts = ["x" * 200_000, *("y" * 90_000 for _ in range(20))]
    if kind == "json":
        content = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    else:
        content = "text\n" + "".join(f"{text}\n" for text in texts)
    path = write(tmp_path / f"x.{kind}", content.encode())
    monkeypatch.setattr(record_sizes, "LONGEST_RECORD_BYTES", 300_000)
    reader = open_files(kind, path)
    (piece,) = reader.slices(1 << 40)
    assert [item.text for item in reader.read(piece, lambda _: None) if isinstance(item, Document)] == texts
    monkeypatch.setattr(record_sizes, "LONGEST_RECORD_BYTES", 150_000)
    with pytest.raises(UserError, match="has more than"):
        list(open_files(kind, path).read(piece, lambda _: None))
