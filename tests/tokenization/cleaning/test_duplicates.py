"""Duplicates across parts: every document but the first of its kind is found, from scan files alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.errors import WorldError
from tokenization.cleaning.duplicates import Run, duplicates_in, occurs_in, text_hash, write_scan
from tokenization.documents import Document, TokenizedDocument


def text_document(text: str) -> Document:
    return Document(text, len(text.encode()), "A", "train", "a.jsonl", 1)


def token_document(ids: list[int], dtype: str = "<u2") -> TokenizedDocument:
    return TokenizedDocument(np.array(ids, dtype), 3 * len(ids), "A", "train", "a.npy", 1)


class Pieces:
    def __init__(self, *pieces: str) -> None:
        self._pieces = pieces

    def pieces(self) -> Iterator[str]:
        return iter(self._pieces)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(st.lists(st.integers(0, 12), max_size=14), min_size=1, max_size=5), run=st.integers(1, 6))
@example(parts=[[3] * 14, [], [3, 3]], run=1)
def test_what_a_set_would_find_is_found(tmp_path: Path, parts: list[list[int]], run: int) -> None:
    scans = [tmp_path / f"{number}.scan" for number in range(len(parts))]
    for path, texts in zip(scans, parts, strict=True):
        assert write_scan(path, (text_document(f"text {text}") for text in texts), run) == len(texts)
    seen: set[int] = set()
    for part, texts in enumerate(parts):
        expected = []
        for number, text in enumerate(texts):
            if text in seen:
                expected.append(number)
            seen.add(text)
        found = duplicates_in(part, scans, run)
        assert (found.tolist(), found.dtype) == (expected, np.int64)


halves = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=12).map(sorted)


@settings(max_examples=200, deadline=None)
@given(halves, halves)
@example([(1, 3)], [(1, 0), (1, 1), (1, 2), (1, 3)])
@example([(2**64 - 1, 0)], [(2**64 - 1, 1)])
def test_texts_that_share_half_a_hash_are_told_apart(own: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    def run(pairs: list[tuple[int, int]]) -> Run:
        columns = np.array(pairs, np.uint64).reshape(-1, 2)
        return Run(columns[:, 0], columns[:, 1], np.arange(len(pairs), dtype=np.uint64))

    assert occurs_in(run(own), run(other)).tolist() == [pair in other for pair in own]


def test_a_long_text_equals_the_same_text_in_one_string() -> None:
    whole = text_hash(text_document("naïve 🙂 text"))
    assert text_hash(Document(Pieces("naï", "", "ve 🙂", " text"), 15, "B", "train", "b", None)) == whole
    assert text_hash(Document(Pieces("naï", "ve 🙂", "text"), 14, "B", "train", "b", None)) != whole


def test_tokens_are_equal_whatever_their_type_and_never_equal_to_a_text() -> None:
    ids = [5, 0, 65535]
    assert text_hash(token_document(ids)) == text_hash(token_document(ids, "<u4"))
    assert text_hash(token_document(ids)) != text_hash(token_document([5, 0]))
    same_bytes = np.array([0x61626364], "<u4")
    document = TokenizedDocument(same_bytes, 4, "A", "train", "a.npy", 1)
    assert text_hash(document) != text_hash(text_document(same_bytes.tobytes().decode()))


def test_a_damaged_or_missing_scan_is_named(tmp_path: Path) -> None:
    first, second = tmp_path / "first.scan", tmp_path / "second.scan"
    for path in (first, second):
        write_scan(path, [text_document("a"), text_document("b")])
    assert duplicates_in(1, [first, second]).tolist() == [0, 1]
    whole = first.read_bytes()
    for content in (whole[:-1], whole[:9], b"", b"x" * len(whole)):
        first.write_bytes(content)
        with pytest.raises(WorldError, match="first.scan is damaged"):
            duplicates_in(1, [first, second])
    first.unlink()
    with pytest.raises(WorldError, match="first.scan cannot be read"):
        duplicates_in(1, [first, second])


SCAN_UNTIL_KILLED = """
import sys, itertools
from pathlib import Path
from tokenization.documents import Document
from tokenization.cleaning.duplicates import write_scan

def documents():
    for number in itertools.count():
        if number == 20_000:
            print("under way", flush=True)
        yield Document(str(number), 1, "A", "train", "a", number)

write_scan(Path(sys.argv[1]), documents(), 1000)
"""


def test_a_scan_that_is_killed_leaves_the_one_before_it(tmp_path: Path) -> None:
    path = tmp_path / "a.scan"
    write_scan(path, [text_document("a"), text_document("a")])
    process = subprocess.Popen([sys.executable, "-c", SCAN_UNTIL_KILLED, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "under way\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=30)
    process.stdout.close()
    assert duplicates_in(0, [path]).tolist() == [1]
    assert write_scan(path, [text_document("b")]) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["a.scan"]
