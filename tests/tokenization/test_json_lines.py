"""Records of JSON lines become documents, or refusals with their place."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import pytest

from pipeline.data.manifest import InputEntry
from pipeline.errors import UserError
from pipeline.recipe import JsonLinesSource, TokenizeSection
from tokenization.documents import Document, Item, Rejection
from tokenization.json_lines import JsonLinesReader, find_files
from tokenization.sources import open_sources


def read(path: Path, **settings) -> list[Item]:
    source = JsonLinesSource(kind="jsonl", train=[str(path)], **{"validation_share": 1e-9, **settings})
    return list(JsonLinesReader(source, seed=0).read(lambda _: None))


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
    assert entry == InputEntry(path=str(path), bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def test_a_byte_order_mark_does_not_cost_the_first_document(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"text": "first"}\n')
    assert isinstance(read(path)[0], Document)


def test_the_validation_share_is_seeded_and_roughly_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(b"".join(b'{"text": "%d"}\n' % number for number in range(4000))))

    def cut(seed: int) -> list[str]:
        source = JsonLinesSource(kind="jsonl", train=[str(path)], validation_share=0.1)
        items = JsonLinesReader(source, seed).read(lambda _: None)
        return [item.text for item in items if isinstance(item, Document) and item.split == "validation"]

    assert cut(1) == cut(1)
    assert cut(1) != cut(2)
    assert 300 < len(cut(1)) < 500


def test_files_are_found_once_and_in_sorted_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c[1].jsonl"):
        (tmp_path / name).write_text("")
    (tmp_path / "folder.jsonl").mkdir()
    found = find_files([str(tmp_path / "*.jsonl"), str(tmp_path / "a.jsonl"), str(tmp_path / "c[1].jsonl")])
    assert [path.name for path in found] == ["a.jsonl", "b.jsonl", "c[1].jsonl"]


def test_missing_inputs_are_named_all_at_once(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UserError) as caught:
        find_files([str(tmp_path / "none.jsonl"), str(tmp_path / "*.zst"), str(tmp_path / "notes.txt")])
    message = str(caught.value)
    assert "none.jsonl: no such file" in message
    assert "*.zst: no file matches" in message
    assert "notes.txt: a name that ends in" in message


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
        open_sources(section, seed=0)


def test_problems_of_all_sources_come_together_with_their_places(tmp_path: Path) -> None:
    sources = [
        {"kind": "jsonl", "train": [str(tmp_path / "gone.jsonl")], "validation_share": 0.5},
        {"kind": "text", "name": "t", "path": str(tmp_path / "nowhere")},
    ]
    section = TokenizeSection.model_validate({"tokenizer": "x", "seq_len": 4, "sources": sources})
    with pytest.raises(UserError, match=r"sources\.0: .*gone.jsonl.*sources\.1: .*nowhere: no such folder"):
        open_sources(section, seed=0)
