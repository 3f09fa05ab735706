"""Records of JSON lines become documents, or refusals with their place."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError, WorldError
from pipeline.recipe_tokenize import JsonLinesSource, TokenizeSection
from tokenization.documents import Document, Item, Rejection, SliceEnd, Text
from tokenization.sources.json_lines import JsonLinesReader
from tokenization.sources.open_sources import open_sources


def read(path: Path, **fields) -> list[Item]:
    source = JsonLinesSource(kind="jsonl", train=[str(path)], **{"validation_share": 1e-9, **fields})
    return read_all(JsonLinesReader(source, seed=0))


def read_all(reader: JsonLinesReader, part_bytes: int = 1 << 30) -> list[Item]:
    return [item for piece in reader.slices(part_bytes) for item in reader.read(piece, lambda _: None)]


def test_fields_are_found_by_their_dotted_names(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    records = [
        {"body": {"plain": "one"}, "from": {"name": "X"}},
        {"body": {"plain": "two"}, "from": "elsewhere"},
        {"body": {"plain": "three"}},
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    documents = read(path, text_field="body.plain", source_field="from.name", name="fallback")[:-1]
    assert [(d.text, d.source, d.line) for d in documents if isinstance(d, Document)] == [
        ("one", "X", 1),
        ("two", "fallback", 2),
        ("three", "fallback", 3),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "cut', "malformed_json"),
        (b"plain words", "malformed_json"),
        (b"[" * 100_000, "malformed_json"),
        (b"9" * 5_000, "malformed_json"),
        (b'{"txt": "a"}', "missing_text"),
        (b'{"text": null}', "missing_text"),
        (b'["text"]', "missing_text"),
        (b'{"text": 3}', "text_not_a_string"),
        (b'{"text": ["a"]}', "text_not_a_string"),
        (b'{"text": "\xff\xfe"}', "not_utf8"),
        (b'{"text": "half \\ud83d of a pair"}', "not_utf8"),
        (b'{"text": "a", "meta": {"pile_set_name": "\\ud83d"}}', "not_utf8"),
    ],
)
def test_a_bad_line_is_refused_with_its_place_and_its_neighbours_stay(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "before"}\r\n\n' + line + b'\n{"text": "behind"}')
    before, refused, behind, entry = read(path)
    assert isinstance(before, Document)
    assert isinstance(behind, Document)
    assert (before.text, behind.text, behind.line) == ("before", "behind", 4)
    assert isinstance(refused, Rejection)
    assert (refused.file, refused.line, refused.reason) == (str(path), 3, reason)
    content = path.read_bytes()
    assert entry == SliceEnd(records=4, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text(max_size=40), min_size=1, max_size=30),
    ending=st.sampled_from(["", ".gz", ".zst"]),
    part_bytes=st.integers(1, 400),
    last_feed=st.booleans(),
    chance=st.randoms(use_true_random=False),
)
def test_slices_share_a_file_without_loss(texts, ending, part_bytes, last_feed, chance) -> None:
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[ending]
    lines = b"\n".join(json.dumps({"text": text}).encode() for text in texts) + b"\n" * last_feed
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"x.jsonl{ending}"
        path.write_bytes(pack(lines))
        source = JsonLinesSource(kind="jsonl", train=[str(path)], validation_share=0.5)
        whole = read_all(JsonLinesReader(source, 0))
        reader = JsonLinesReader(source, 0)
        slices = reader.slices(part_bytes)
        order = list(range(len(slices)))
        chance.shuffle(order)  # any process may read any of them
        found = {number: list(reader.read(slices[number], lambda _: None)) for number in order}
        documents, ends, lines_before = [], [], 0
        for number in range(len(slices)):
            *items, end = found[number]
            assert isinstance(end, SliceEnd)
            for item in items:
                assert isinstance(item, Document) and item.line is not None
                documents.append(replace(item, line=item.line + lines_before))
            lines_before += end.records
            ends.append(end)
        assert documents == whole[:-1]
        assert isinstance(whole[-1], SliceEnd)
        assert [item.text for item in documents] == texts
        assert lines_before == len(texts)
        assert all(end.sha256 is None for end in ends[:-1])
        assert ends[-1].sha256 == hashlib.sha256(path.read_bytes()).hexdigest() == whole[-1].sha256
        assert ends[-1].bytes == path.stat().st_size


def test_a_byte_order_mark_does_not_cost_the_first_document(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"text": "first"}\n')
    assert isinstance(read(path)[0], Document)


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_file_that_changes_after_the_plan_stops_the_work(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"x.jsonl{ending}"
    content = b'{"text": "a"}\n' * 50
    path.write_bytes(gzip.compress(content) if ending else content)
    reader = JsonLinesReader(JsonLinesSource(kind="jsonl", train=[str(path)], validation_share=1e-9), seed=0)
    pieces = reader.slices(100)
    assert len(pieces) > 1
    for piece in pieces:
        items = reader.read(piece, lambda _: None)
        assert isinstance(next(items), Document)
        modified = path.stat().st_mtime_ns
        os.utime(path, ns=(1, 1))
        with pytest.raises(WorldError, match=rf"x\.jsonl{ending} has changed since the work on it was planned"):
            list(items)
        with pytest.raises(WorldError, match="has changed since"):
            next(reader.read(piece, lambda _: None))
        os.utime(path, ns=(modified, modified))
        assert isinstance(list(reader.read(piece, lambda _: None))[-1], SliceEnd)


def test_the_validation_share_is_seeded_and_roughly_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(b"".join(b'{"text": "%d"}\n' % number for number in range(4000))))

    def cut(seed: int) -> list[Text]:
        source = JsonLinesSource(kind="jsonl", train=[str(path)], validation_share=0.1)
        items = read_all(JsonLinesReader(source, seed))
        return [item.text for item in items if isinstance(item, Document) and item.split == "validation"]

    assert cut(1) == cut(1)
    assert cut(1) != cut(2)
    assert 300 < len(cut(1)) < 500


def test_training_on_the_validation_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "a.jsonl")
    section = TokenizeSection.model_validate(
        {
            "tokenizer": "x",
            "seq_len": 4,
            "sources": [
                {
                    "kind": "jsonl",
                    "train": [str(tmp_path / "a.jsonl")],
                    "validation": [str(tmp_path / "link.jsonl")],
                }
            ],
        }
    )
    with pytest.raises(UserError, match="for training and for validation"):
        open_sources(section, 0, None)


def test_problems_of_all_sources_come_together_with_their_places(tmp_path: Path) -> None:
    sources = [
        {"kind": "jsonl", "train": [str(tmp_path / "gone.jsonl")], "validation_share": 0.5},
        {"kind": "text", "name": "t", "path": str(tmp_path / "nowhere")},
    ]
    section = TokenizeSection.model_validate({"tokenizer": "x", "seq_len": 4, "sources": sources})
    with pytest.raises(UserError, match=r"sources\.0: .*gone.jsonl.*sources\.1: .*nowhere: no such folder"):
        open_sources(section, 0, None)
