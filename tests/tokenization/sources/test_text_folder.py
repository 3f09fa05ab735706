"""A folder of text files gives each of its own files once, in an order of the seed."""

from __future__ import annotations

import hashlib
import os
from itertools import product
from pathlib import Path

import pytest

from pipeline.errors import UserError, WorldError
from pipeline.recipe_tokenize import TextFolderSource
from tokenization.documents import Document, Rejection, SliceEnd, pieces_of
from tokenization.sources import text_folder
from tokenization.sources.text_folder import TextFolderReader


def make_reader(folder: Path | str, seed: int = 0, **settings) -> TextFolderReader:
    return TextFolderReader(TextFolderSource(kind="text", name="t", path=str(folder), **settings), seed)


def names(reader: TextFolderReader, folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in reader.train_files]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "texts"
    for number in range(30):
        path = root / f"part{number % 3}" / f"{number:02d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text {number} " * 10)
    (root / "top.txt").write_text("at the top")
    (root / "other.md").write_text("not asked for")
    return root


def test_patterns_include_and_exclude_at_every_depth(folder: Path) -> None:
    assert len(names(make_reader(folder), folder)) == 31
    assert names(make_reader(folder, include=["*.txt"]), folder) == ["top.txt"]
    assert sorted(names(make_reader(folder, exclude=["part0/**", "**/part1/**", "top.*"]), folder)) == sorted(
        f"part2/{number:02d}.txt" for number in range(2, 30, 3)
    )


def test_a_trailing_double_star_means_what_lies_below(tmp_path: Path) -> None:
    for name in ("a/test", "a/b/test/deep/x", "a/b/tests/y"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    reader = make_reader(tmp_path, include=["**"], exclude=["**/test/**"])
    assert sorted(names(reader, tmp_path)) == ["a/b/tests/y", "a/test"]
    assert names(make_reader(tmp_path, include=["a/**/x"]), tmp_path) == ["a/b/test/deep/x"]


def test_the_order_is_the_seeds_and_is_not_moved_by_a_new_file(folder: Path) -> None:
    first = names(make_reader(folder, seed=1), folder)
    assert first == names(make_reader(folder, seed=1), folder)
    assert first != names(make_reader(folder, seed=2), folder)
    assert first != sorted(first)
    (folder / "part0" / "new.txt").write_text("new")
    assert [name for name in names(make_reader(folder, seed=1), folder) if name != "part0/new.txt"] == first


def test_max_bytes_takes_a_prefix_of_the_same_order(folder: Path) -> None:
    all_names = names(make_reader(folder), folder)
    for max_bytes in (1, 100, 1000, 10**9):
        reader = make_reader(folder, max_bytes=max_bytes)
        taken = names(reader, folder)
        sizes = [(folder / name).stat().st_size for name in taken]
        assert taken == all_names[: len(taken)]
        assert sum(sizes[:-1]) < max_bytes
        assert sum(sizes) >= max_bytes or taken == all_names
        assert reader.text_bytes == sum(sizes)


def test_links_are_not_followed_out_of_the_folder_or_round_in_circles(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("not in the folder")
    expected = names(make_reader(folder), folder)
    (folder / "loop").symlink_to(folder)
    (folder / "away").symlink_to(outside)
    (folder / "away.txt").symlink_to(outside / "secret.txt")
    (folder / "twice.txt").symlink_to(folder / "top.txt")
    (folder / "dangling.txt").symlink_to(folder / "nothing")
    assert names(make_reader(folder), folder) == expected


def test_a_folder_that_is_itself_a_link_is_read(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    assert len(make_reader(tmp_path / "link").train_files) == 31


def test_a_missing_folder_and_one_without_a_match_are_named(folder: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such folder"):
        make_reader(folder / "nowhere")
    with pytest.raises(UserError, match=r"texts: no file matches \*\.py"):
        make_reader(folder, include=["*.py"])


def test_a_file_that_is_not_utf8_is_refused_whole_and_the_folder_gets_one_entry(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"caf\xe9")
    (tmp_path / "good.txt").write_text("café")
    reader = make_reader(tmp_path)
    read_bytes: list[int] = []
    (piece,) = reader.slices(1 << 20)
    assert (piece.input, piece.start, piece.end, piece.size, piece.split) == (str(tmp_path), 0, 2, 9, "train")
    *found, entry = reader.read(piece, read_bytes.append)
    (rejection,) = [item for item in found if isinstance(item, Rejection)]
    (document,) = [item for item in found if isinstance(item, Document)]
    assert (rejection.file, rejection.line, rejection.reason) == (str(tmp_path / "bad.txt"), None, "not_utf8")
    assert (document.text, document.text_bytes) == ("café", 5)
    listing = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in reader.train_files)
    assert entry == SliceEnd(records=0, bytes=9, sha256=hashlib.sha256(listing.encode()).hexdigest())
    assert sum(read_bytes) == reader.text_bytes == 9


def test_slices_hold_the_same_documents_and_notice_a_changed_file(folder: Path) -> None:
    def texts(reader: TextFolderReader, part_bytes: int) -> list[str]:
        items = [item for piece in reader.slices(part_bytes) for item in reader.read(piece, lambda _: None)]
        return [item.text for item in items if isinstance(item, Document) and isinstance(item.text, str)]

    reader = make_reader(folder)
    assert len(reader.slices(200)) > 5
    assert texts(reader, 200) == texts(reader, 1 << 20)
    before = reader.slices(200)
    changed = reader.train_files[-1]
    changed.write_text("changed")
    after = make_reader(folder).slices(200)
    assert after[0] == before[0]
    assert after[-1].identity != before[-1].identity


def test_a_large_file_is_decoded_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_folder, "LONG_TEXT_BYTES", 10)
    text = "aé東🙂 " * 200_000
    (tmp_path / "long.txt").write_text(text, encoding="utf-8")
    (tmp_path / "bad.txt").write_bytes(text.encode()[:-2] + b"\xff")
    reader = make_reader(tmp_path)
    items = [item for piece in reader.slices(1 << 20) for item in reader.read(piece, lambda _: None)]
    (document,) = [item for item in items if isinstance(item, Document)]
    pieces = list(pieces_of(document.text))
    assert "".join(pieces) == text
    assert len(pieces) > 1
    assert [item.reason for item in items if isinstance(item, Rejection)] == ["not_utf8"]


def test_a_file_beyond_all_measure_is_refused_and_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_folder, "LONGEST_FILE_BYTES", 20)
    monkeypatch.setattr(text_folder, "HASH_BLOCK_BYTES", 7)
    (tmp_path / "fits.txt").write_text("x" * 20)
    (tmp_path / "large.txt").write_text("y" * 21)
    reader = make_reader(tmp_path)
    read_bytes: list[int] = []
    (piece,) = reader.slices(1 << 20)
    *found, end = reader.read(piece, read_bytes.append)
    (refused,) = [item for item in found if isinstance(item, Rejection)]
    (kept,) = [item for item in found if isinstance(item, Document)]
    assert (refused.file, refused.reason) == (str(tmp_path / "large.txt"), "too_long")
    assert refused.detail == "21 bytes, more than 20"
    assert kept.text == "x" * 20
    listing = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in reader.train_files)
    assert end == SliceEnd(records=0, bytes=41, sha256=hashlib.sha256(listing.encode()).hexdigest())
    assert sum(read_bytes) == 41


@pytest.mark.parametrize(
    ("change", "moment"),
    [
        # A file that comes later is in no slice.
        ("more", "before a new process"),
        *product(["content", "time", "name"], ["before a new process", "before", "meanwhile"]),
    ],
)
def test_a_folder_that_changes_after_the_plan_stops_the_work(folder: Path, change: str, moment: str) -> None:
    reader = make_reader(folder)
    (piece,) = reader.slices(1 << 20)
    path = folder / "top.txt"

    def make_change() -> None:
        if change == "content":
            path.write_text("more than there was")
        elif change == "time":
            os.utime(path, ns=(1, 1))
        elif change == "name":
            path.rename(folder / "bottom.txt")
        else:
            (folder / "part0" / "new.txt").write_text("new")

    if moment != "meanwhile":
        make_change()
    if moment == "before a new process":
        reader = make_reader(folder)
    items = reader.read(piece, lambda _: None)
    missing = change == "name" and moment != "before a new process"
    with pytest.raises(WorldError, match="top.txt cannot be read" if missing else "texts has changed since the work"):
        if moment == "meanwhile":
            for _ in range(31):
                assert isinstance(next(items), Document)
            make_change()
        next(items)


def test_the_standard_library_is_found() -> None:
    reader = make_reader("{python_stdlib}", include=["json/*.py"], exclude=["site-packages/**", "test/**"])
    assert "decoder.py" in {path.name for path in reader.train_files}
