"""Files are found by names and patterns, and what is missing is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import UserError, WorldError
from tokenization.sources.find_files import check_unchanged, file_identity, find_files

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")


def test_files_are_found_once_and_in_sorted_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c[1].jsonl"):
        (tmp_path / name).write_text("")
    (tmp_path / "folder.jsonl").mkdir()
    found = find_files([str(tmp_path / "*.jsonl"), str(tmp_path / "a.jsonl"), str(tmp_path / "c[1].jsonl")], SUFFIXES)
    assert [path.name for path in found] == ["a.jsonl", "b.jsonl", "c[1].jsonl"]


def test_missing_inputs_are_named_all_at_once(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UserError) as caught:
        find_files([str(tmp_path / "none.jsonl"), str(tmp_path / "*.zst"), str(tmp_path / "notes.txt")], SUFFIXES)
    message = str(caught.value)
    assert "none.jsonl: no such file" in message
    assert "*.zst: no file matches" in message
    assert "notes.txt: a name that ends in" in message


def test_a_file_that_changed_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("one")
    identity = file_identity(path)
    check_unchanged(identity, path)
    path.write_text("three")
    with pytest.raises(WorldError, match=r"a\.jsonl has changed since the work on it was planned"):
        check_unchanged(identity, path)
