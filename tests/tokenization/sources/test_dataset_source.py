"""Rows of Parquet, Arrow, JSON and CSV files and of streamed data sets become documents, however they are cut."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import pickle
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError, WorldError
from pipeline.recipe_tokenize import DatasetSource
from tokenization.documents import Document, Rejection, SliceEnd, SourceReader
from tokenization.sources.dataset_source import StreamedDatasetReader, open_dataset
from tokenization.sources.table_files import stretches

ROWS = [
    {"text": f"text number {number} " * (number % 7 + 1), "meta": {"from": "AB"[number % 2]}, "n": number}
    for number in range(50)
]


def make_source(path: str, *files: Path, **fields) -> DatasetSource:
    given = {"validation_share": 1e-12} if not {"validation_files", "validation_split"} & fields.keys() else {}
    return DatasetSource(
        **{"kind": "dataset", "name": "d", "path": path, "files": [str(file) for file in files], **given, **fields}
    )


def make_reader(path: str, *files: Path, seed: int = 0, **fields) -> SourceReader:
    return open_dataset(make_source(path, *files, **fields), seed)


def read(reader: SourceReader, part_bytes: int = 1 << 30) -> list:
    """All items in reading order; each slice is read by a reader that another process might have got."""
    items = []
    for piece in reversed(reader.slices(part_bytes)):
        advanced: list[int] = []
        read_items = list(pickle.loads(pickle.dumps(reader)).read(piece, advanced.append))
        end = read_items[-1]
        assert isinstance(end, SliceEnd)
        assert [item.line for item in read_items[:-1]] == list(range(1, end.records + 1))
        assert sum(advanced) == sum(item.text_bytes for item in read_items if isinstance(item, Document))
        items = read_items + items
    return items


def documents(items: list) -> list[tuple[Any, str]]:
    found = [item for item in items if isinstance(item, Document)]
    assert all(isinstance(item.text, str) and len(item.text.encode()) == item.text_bytes for item in found)
    return [(item.text, item.source) for item in found]


def write(path: Path, rows: list[dict], group_rows: int = 7) -> Path:
    """`rows` in the format of the suffix; .arrow as a stream, .feather.arrow with a footer."""
    table = pa.Table.from_pylist(rows)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=group_rows)
    elif path.suffix == ".arrow":
        make = pa.ipc.new_file if ".footer" in path.suffixes else pa.ipc.new_stream
        with pa.OSFile(str(path), "wb") as sink, make(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=group_rows)
    elif ".json" in path.suffixes or ".jsonl" in path.suffixes:
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    else:
        flat = [{**row, **({"meta": row["meta"]["from"]} if "meta" in row else {})} for row in rows]
        datasets.Dataset.from_list(flat).to_csv(str(path), sep="\t" if ".tsv" in path.suffixes else ",")
    return path


@pytest.mark.parametrize(
    "name", ["x.parquet", "x.arrow", "x.footer.arrow", "x.json", "x.jsonl", "x.json.gz", "x.csv", "x.tsv", "x[1]*.json"]
)
@pytest.mark.parametrize("part_bytes", [1, 300, 1 << 30])
def test_every_format_gives_its_rows_in_order(tmp_path: Path, name: str, part_bytes: int) -> None:
    path = write(tmp_path / name, ROWS)
    kind = "json" if ".json" in name else "csv" if name in ("x.csv", "x.tsv") else path.suffix[1:]
    reader = make_reader(kind, path, source_field="meta" if kind == "csv" else "meta.from")
    assert documents(read(reader, part_bytes)) == [(row["text"], row["meta"]["from"]) for row in ROWS]
    if kind in ("parquet", "arrow"):
        assert len(reader.slices(part_bytes)) == {1: 50, 300: len(reader.slices(300)), 1 << 30: 1}[part_bytes]
        assert 4 <= len(reader.slices(300)) <= 30


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.none() | st.text(max_size=40), min_size=1, max_size=30),
    group_rows=st.integers(1, 12),
    part_bytes=st.integers(1, 400),
    suffix=st.sampled_from([".parquet", ".arrow", ".footer.arrow"]),
)
def test_the_union_of_the_slices_is_the_file(tmp_path: Path, texts, group_rows, part_bytes, suffix) -> None:
    path = write(tmp_path / f"x{suffix}", [{"n": 1, "text": text} for text in texts], group_rows)
    reader = make_reader(path.suffix[1:], path, validation_share=0.3)
    items = [item for item in read(reader, part_bytes) if not isinstance(item, SliceEnd)]
    found = [item.text if isinstance(item, Document) else item.reason for item in items]
    assert found == ["missing_text" if text is None else text for text in texts]
    whole = [item for item in read(reader) if not isinstance(item, SliceEnd)]
    assert [getattr(item, "split", None) for item in items] == [getattr(item, "split", None) for item in whole]


@given(groups=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5000)), max_size=20), part=st.integers(1, 6000))
def test_stretches_cover_all_rows_once_and_hold_no_more_than_asked(groups: list, part: int) -> None:
    found = stretches(groups, part)
    assert found[0][0] == 0 and found[-1][1] == sum(rows for rows, _ in groups)
    assert all(one[1] == other[0] for one, other in pairwise(found))
    largest_row = max((-(-size // rows) if rows else size for rows, size in groups), default=0)
    assert all(size <= max(part, largest_row) for _, _, size in found)


def test_text_types_of_all_kinds_are_read(tmp_path: Path) -> None:
    for number, kind in enumerate(
        [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
    ):
        array = pa.array(["a", None, "bé", "a"], pa.string()).cast(pa.large_string() if number == 1 else pa.string())
        array = array.dictionary_encode() if number == 3 else array.cast(kind)
        table = pa.table({"text": array})
        with pa.OSFile(str(tmp_path / f"{number}.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as out:
            out.write_table(table)
        items = read(make_reader("arrow", tmp_path / f"{number}.arrow"))
        assert [item.text if isinstance(item, Document) else item.reason for item in items[:-1]] == [
            "a",
            "missing_text",
            "bé",
            "a",
        ]


def test_a_text_that_is_no_utf8_costs_its_own_row_alone(tmp_path: Path) -> None:
    raw = pa.array([b"one", b"\xff\xfe", b"three"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    table = pa.table({"text": text})
    pq.write_table(table, tmp_path / "x.parquet")
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    for kind in ("parquet", "arrow"):
        items = read(make_reader(kind, tmp_path / f"x.{kind}"))
        assert [item.text if isinstance(item, Document) else item.reason for item in items[:-1]] == [
            "one",
            "not_utf8",
            "three",
        ]


def test_fields_and_columns_are_found_by_dots(tmp_path: Path) -> None:
    rows = [{"body": {"plain": {"en": "one"}}, "a.b": "X"}, {"body": None, "a.b": "Y"}, {"body": {"plain": None}}]
    for name in ("x.parquet", "x.arrow", "x.json"):
        path = write(tmp_path / name, rows)
        reader = make_reader(path.suffix[1:], path, text_field="body.plain.en", source_field="a.b")
        items = read(reader)
        assert documents(items) == [("one", "X")]
        assert [item.reason for item in items if isinstance(item, Rejection)] == ["missing_text", "missing_text"]


def test_a_record_without_a_source_name_takes_the_recipes(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", [{"text": "a", "s": None}, {"text": "b", "s": "  "}, {"text": "c", "s": "S"}])
    assert documents(read(make_reader("parquet", path, source_field="s"))) == [("a", "d"), ("b", "d"), ("c", "S")]


def test_json_texts_that_are_no_strings_are_refused_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"text": "a"}\n{"text": 3}\n{"text": null}\n{"other": 1}\n{"text": ["b"]}\n{"text": "c"}\n')
    items = read(make_reader("json", path))
    assert [item.text if isinstance(item, Document) else item.reason for item in items[:-1]] == [
        "a",
        "text_not_a_string",
        "missing_text",
        "missing_text",
        "text_not_a_string",
        "c",
    ]


def test_a_json_array_of_records_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps([{"text": "a", "meta": {"s": "S"}}, {"text": "b"}], indent=1))
    reader = make_reader("json", tmp_path / "x.json", source_field="meta.s")
    assert documents(read(reader)) == [("a", "S"), ("b", "d")]


def test_csv_texts_stay_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('id,text\n1,"a ""quoted"" text,\nin two lines"\n2,NA\n3,007\n4,\n5,null\n')
    items = read(make_reader("csv", tmp_path / "x.csv"))
    assert [item.text if isinstance(item, Document) else item.reason for item in items[:-1]] == [
        'a "quoted" text,\nin two lines',
        "NA",
        "007",
        "missing_text",
        "null",
    ]


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow", "x.json", "x.csv"])
def test_a_wrong_column_is_named_with_the_nearest(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, ROWS)
    kind = path.suffix[1:]
    with pytest.raises(UserError, match=rf"{name} has no column txt: did you mean text\?"):
        make_reader(kind, path, text_field="txt")
    with pytest.raises(UserError, match=rf"{name} has no column zzz: it has text, meta"):
        make_reader(kind, path, source_field="zzz")


def test_a_column_that_holds_no_text_is_refused(tmp_path: Path) -> None:
    for name in ("x.parquet", "x.arrow", "x.json"):
        path = write(tmp_path / name, ROWS)
        with pytest.raises(UserError, match=rf"{name}: its column n holds int64, not text"):
            make_reader(path.suffix[1:], path, text_field="n")


def test_a_later_file_without_the_column_is_named_before_anything_is_read(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", ROWS)
    write(tmp_path / "b.parquet", [{"body": "x"}])
    with pytest.raises(UserError, match=r"b\.parquet has no column text"):
        make_reader("parquet", tmp_path / "*.parquet")
    write(tmp_path / "a.csv", ROWS)
    write(tmp_path / "b.csv", [{"body": "x", "n": 1}])
    with pytest.raises(WorldError, match=r"b\.csv has no column text"):
        read(make_reader("csv", tmp_path / "*.csv"))


@pytest.mark.parametrize("cut", [1, 8, 200])
@pytest.mark.parametrize("name", ["x.parquet", "x.arrow", "x.footer.arrow", "x.json.gz"])
def test_a_file_cut_short_is_named(tmp_path: Path, name: str, cut: int) -> None:
    path = write(tmp_path / name, ROWS)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(WorldError, match=name):
        read(make_reader("json" if "json" in name else path.suffix[1:], path))


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow", "x.json", "x.csv"])
def test_an_empty_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(WorldError, match=name):
        read(make_reader((tmp_path / name).suffix[1:], tmp_path / name))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.json", b'{"text": "a"}\n{"text": "b"\n'),
        ("x.json", b'{"text": "a"}\n{"text": "\xff"}\n'),
        ("x.json", b"plain words"),
        ("x.csv", b'text,n\n"never closed\n'),
        ("x.csv", b"text,n\na,1\nb,2,3\n"),
        ("x.csv", b"text,n\n\xff\xfe,1\n"),
    ],
)
def test_a_malformed_file_is_named(tmp_path: Path, name: str, content: bytes, capfd) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WorldError, match=rf"{name} cannot be read as") as raised:
        read(make_reader(name[2:], tmp_path / name))
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


def test_a_csv_header_of_another_width_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("id,text\n1,a,b\n")
    with pytest.raises(UserError, match="names 2 columns, its first row has 3"):
        make_reader("csv", tmp_path / "x.csv")


def test_flipped_bytes_in_a_parquet_page_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path, compression="zstd", write_page_checksum=True)
    content = bytearray(path.read_bytes())
    content[100] ^= 255
    path.write_bytes(content)
    with pytest.raises(WorldError, match=r"x\.parquet"):
        read(make_reader("parquet", path))


@pytest.mark.parametrize("name", ["x.json.gz", "x.csv.gz"])
def test_flipped_bytes_in_a_gzip_file_are_noticed(tmp_path: Path, name: str, capfd) -> None:
    """zlib has an error of its own, beside a checksum that is wrong or an end that is missing."""
    rows = [{"text": hashlib.sha256(b"%d" % number).hexdigest() * 3} for number in range(600)]
    path = tmp_path / name
    plain = (
        "".join(json.dumps(row) + "\n" for row in rows)
        if "json" in name
        else "text\n" + "".join(row["text"] + "\n" for row in rows)
    )
    content = gzip.compress(plain.encode(), mtime=0)
    for place in [0, 10, 11, 20, *range(100, len(content) - 8, len(content) // 12), len(content) - 6]:
        damaged = bytearray(content)
        damaged[place] ^= 255
        path.write_bytes(damaged)
        with pytest.raises(WorldError, match=rf"{name} cannot be read as"):
            read(make_reader(name.split(".")[1], path))
    assert capfd.readouterr() == ("", "")


def test_the_last_slice_gives_size_and_hash(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", ROWS)
    reader = make_reader("parquet", path)
    ends = [item for item in read(reader, 300) if isinstance(item, SliceEnd)]
    assert len(ends) > 3 and sum(end.records for end in ends) == 50
    assert all((end.bytes, end.sha256) == (0, None) for end in ends[:-1])
    assert (ends[-1].bytes, ends[-1].sha256) == (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
    assert reader.text_bytes == sum(piece.size for piece in reader.slices(1 << 62)) > 0


def test_a_file_that_changes_after_the_plan_stops_the_work(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", ROWS)
    reader = make_reader("parquet", path)
    piece = reader.slices(1 << 30)[0]
    os.utime(path, ns=(1, 1))
    assert reader.slices(1 << 30)[0].identity != piece.identity
    with pytest.raises(WorldError, match=r"x\.parquet has changed"):
        list(reader.read(piece, lambda _: None))


def test_validation_files_and_shares(tmp_path: Path) -> None:
    train, held = write(tmp_path / "t.parquet", ROWS * 20), write(tmp_path / "v.parquet", ROWS)
    given = make_reader("parquet", train, validation_files=[str(held)])
    assert [item.split for item in read(given) if isinstance(item, Document)] == ["train"] * 1000 + ["validation"] * 50
    assert (list(given.train_files), list(given.validation_files)) == ([train], [held])
    splits = [
        item.split for item in read(make_reader("parquet", train, validation_share=0.2), 700) if hasattr(item, "split")
    ]
    assert splits == [
        item.split for item in read(make_reader("parquet", train, validation_share=0.2)) if hasattr(item, "split")
    ]
    assert 140 < splits.count("validation") < 260


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "folder"
    root.mkdir()
    write(root / "train-0.parquet", ROWS[:20])
    write(root / "train-1.parquet", ROWS[20:40])
    write(root / "test-0.parquet", ROWS[40:])
    return root


def test_a_folder_is_read_by_its_splits(folder: Path, tmp_path: Path) -> None:
    reader = make_reader(str(folder), validation_split="test", source_field="meta.from")
    items = [item for item in read(reader, 300) if isinstance(item, Document)]
    assert [item.text for item in items] == [row["text"] for row in ROWS]
    assert [item.split for item in items] == ["train"] * 40 + ["validation"] * 10
    with pytest.raises(UserError, match="has no split valid: it has train, test"):
        make_reader(str(folder), validation_split="valid")
    saved = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:3])}
    )
    saved.save_to_disk(str(tmp_path / "saved"))
    again = read(make_reader(str(tmp_path / "saved"), validation_split="test"))
    assert [text for text, _ in documents(again)] == [row["text"] for row in [*ROWS, *ROWS[:3]]]


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        make_reader(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="contain any data files"):
        make_reader(str(tmp_path / "empty"))
    (tmp_path / "x.txt").write_text("words")
    with pytest.raises(UserError, match="holds text files"):
        make_reader(str(tmp_path))


def test_streamed_shards_give_all_rows(folder: Path) -> None:
    """The reader of hub data sets, on a folder: `datasets` streams both in one way."""
    source = make_source(str(folder), validation_split="test", source_field="meta.from")
    sizes = {str(folder / "train-0.parquet"): 7, str(folder / "train-1.parquet"): 8}
    reader = StreamedDatasetReader(source, 0, None, sizes)
    pieces = reader.slices(1)
    assert [(piece.split, piece.size) for piece in pieces] == [("train", 7), ("train", 8), ("validation", 0)]
    assert pieces[1].input == f"{folder}: {folder / 'train-1.parquet'}" and reader.text_bytes == 15
    assert documents(read(reader)) == [(row["text"], row["meta"]["from"]) for row in ROWS]
    ends = [item for item in read(reader) if isinstance(item, SliceEnd)]
    assert all(end.bytes == 0 for end in ends) and len({end.sha256 for end in ends}) == 3
    with pytest.raises(UserError, match="has no column txt: did you mean text"):
        StreamedDatasetReader(make_source(str(folder), text_field="txt"), 0, None, {})
    with pytest.raises(UserError, match="split"):
        StreamedDatasetReader(make_source(str(folder), train_split="dev"), 0, None, {})
    with pytest.raises(UserError, match="nosuch"):
        StreamedDatasetReader(make_source(str(folder), subset="nosuch"), 0, None, {})


def test_a_damaged_streamed_shard_is_named(folder: Path) -> None:
    reader = StreamedDatasetReader(make_source(str(folder)), 0, None, {})
    content = (folder / "train-1.parquet").read_bytes()
    (folder / "train-1.parquet").write_bytes(content[:-30])
    with pytest.raises(WorldError, match="split train, shard 1 cannot be read"):
        read(reader)


def test_flipped_bytes_in_a_streamed_gzip_file_are_named(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": hashlib.sha256(b"%d" % n).hexdigest()}) + "\n" for n in range(600))
    content = gzip.compress(lines.encode(), mtime=0)
    path = tmp_path / "train.jsonl.gz"
    path.write_bytes(content)
    reader = StreamedDatasetReader(make_source(str(tmp_path)), 0, None, {})
    assert len(documents(read(reader))) == 600
    (piece,) = reader.slices(1)
    for place in [0, 20, *range(100, len(content) - 8, len(content) // 8), len(content) - 6]:
        damaged = bytearray(content)
        damaged[place] ^= 255
        path.write_bytes(damaged)
        with pytest.raises((UserError, WorldError), match="cannot be read"):
            list(reader.read(piece, lambda _: None))


class _Refusing(BaseHTTPRequestHandler):
    """Answers as the hub does where it has no such data set or revision, or is broken."""

    def do_GET(self) -> None:
        reasons = {"revision": "RevisionNotFound", "missing": "RepoNotFound"}
        reason = next((reason for word, reason in reasons.items() if word in self.path), None)
        self.send_response(404 if reason else 500)
        if reason:
            self.send_header("X-Error-Code", reason)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["offline", "unreachable", "refusing"])
def test_a_hub_that_gives_nothing_takes_one_line(tmp_path: Path, answer: str) -> None:
    """In a process of its own: the hub's settings are read at import."""
    script = """
from pipeline.errors import AdaPonderError
from tests.tokenization.sources.test_dataset_source import make_reader
for name, revision in (("some/broken", ""), ("some/missing", ""), ("some/thing", "v9"), ("no such id!", "")):
    try:
        make_reader(name, revision=revision)
    except AdaPonderError as error:
        print(type(error).__name__, error)
"""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub = {
        "offline": {"HF_HUB_OFFLINE": "1"},
        "unreachable": {"HF_ENDPOINT": "http://127.0.0.1:9"},
        "refusing": {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"},
    }[answer]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), **hub}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    server.shutdown()
    broken, missing, revised, malformed = done.stdout.splitlines()
    assert done.stderr == ""
    assert malformed.startswith("UserError no such id! is neither a folder here nor a name the hub allows")
    assert broken.startswith("WorldError some/broken is no folder here, and the hub does not give it (")
    if answer == "refusing":
        assert missing.startswith("UserError some/missing is neither a folder here nor a data set of the hub")
        assert revised == "UserError the hub's data set some/thing has no revision v9"
    else:
        assert missing.startswith("WorldError") and revised.startswith("WorldError")


@pytest.mark.slow
def test_neither_the_cache_grows_nor_the_console_speaks(tmp_path: Path, folder: Path) -> None:
    write(tmp_path / "x.json", ROWS)
    script = f"""
from tests.tokenization.sources.test_dataset_source import make_reader, make_source, read
from tokenization.sources.dataset_source import StreamedDatasetReader
from pathlib import Path
assert len(read(make_reader("json", Path({str(tmp_path / "x.json")!r})))) == 51
assert len(read(make_reader({str(folder)!r}))) == 42
assert len(read(StreamedDatasetReader(make_source({str(folder)!r}), 0, None, {{}}))) == 42
"""
    home = tmp_path / "home"
    environment = {**os.environ, "HF_HOME": str(home), "TMPDIR": str(tmp_path / "temporary")}
    (tmp_path / "temporary").mkdir()
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
    assert not [path for path in home.rglob("*") if path.is_file()]
    assert not list((tmp_path / "temporary").iterdir())
