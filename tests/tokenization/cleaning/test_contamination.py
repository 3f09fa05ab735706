"""Texts that share a sequence of words with an evaluation set are found, and no others."""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError, WorldError
from tokenization.cleaning import contamination
from tokenization.cleaning.contamination import Contamination

WORD = re.compile(r"[^\W_]+")
QUESTION = "Which of these was the first to cross the river, and who had built its bridge before?"


class Pieces:
    def __init__(self, *pieces: str) -> None:
        self._pieces = pieces

    def pieces(self) -> Iterator[str]:
        return iter(self._pieces)


def sequences_of(text: str, words: int) -> list[str]:
    """All sequences in order, found the slow way."""
    found = WORD.findall(text.casefold())
    return [" ".join(found[start : start + words]) for start in range(len(found) - words + 1)]


# Few words, so that sequences are shared by chance; letters that casefold to others, to several, or to none.
texts = st.lists(
    st.sampled_from(["a", "B", "b", "ß", "SS", "Straße", "東京", "٣", "9", "_", " ", " ", ", ", "\n", "'", "🙂", "é"]),
    max_size=40,
).map("".join)


@settings(max_examples=300, deadline=None)
@given(st.lists(texts, max_size=4), st.lists(texts, min_size=1, max_size=4), st.integers(1, 4))
def test_the_first_shared_sequence_is_found_however_the_text_is_cut(
    evaluation: list[str], pieces: list[str], words: int
) -> None:
    known = {sequence for text in evaluation for sequence in sequences_of(text, words)}
    expected = next((sequence for sequence in sequences_of("".join(pieces), words) if sequence in known), None)
    searched = Contamination(evaluation, words)
    assert len(searched) == len(known)
    assert searched.passed_over == sum(not sequences_of(text, words) for text in evaluation)
    assert searched.find("".join(pieces)) == expected
    assert searched.find(Pieces(*pieces)) == expected


def test_case_punctuation_and_spacing_do_not_hide_a_sequence() -> None:
    searched = Contamination([QUESTION], 13)
    hidden = QUESTION.upper().replace(",", " --").replace(" ", "\n\t ")
    assert searched.find(f"Some words. {hidden} More.") == "which of these was the first to cross the river and who had"
    assert searched.find(QUESTION.replace("river", "rivers")) is None
    assert searched.find(" ".join(QUESTION.split()[:12])) is None
    assert searched.find("") is None


def test_a_sequence_is_found_wherever_it_stands_in_a_long_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contamination, "BLOCK_CHARACTERS", 64)
    generator = random.Random(0)
    words = [str(generator.randrange(10**6)) for _ in range(400)]
    searched = Contamination([QUESTION], 13)
    for place in range(0, 400, 7):
        text = " ".join([*words[:place], QUESTION, *words[place:]])
        assert searched.find(text) == sequences_of(QUESTION, 13)[0]
    # The evaluation sets' own strings are cut in the same way.
    assert Contamination([" ".join(words)], 13).find("the " * 50 + " ".join(words[250:263])) is not None


def test_a_run_of_letters_without_end_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contamination, "BLOCK_CHARACTERS", 1000)
    monkeypatch.setattr(contamination, "LONGEST_WORD_CHARACTERS", 2000)
    searched = Contamination([QUESTION], 13)
    # The question's first word is none here, so that only its later sequences are left.
    assert searched.find("x" * 20_000 + QUESTION) == sequences_of(QUESTION, 13)[1]
    assert searched.find("x" * 20_000 + " " + QUESTION + " " + "y" * 20_000) is not None


def test_equal_hashes_of_different_words_find_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # All hashes are one, so that only the words themselves can tell.
    real = contamination._sequence_hashes
    monkeypatch.setattr(contamination, "_sequence_hashes", lambda hashes, words: real(hashes, words) * 0)
    searched = Contamination(["one two three"], 3)
    assert searched.find("four five six seven") is None
    assert searched.find("four one two three") == "one two three"


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_every_string_of_a_record_counts(tmp_path: Path, suffix: str) -> None:
    pack = {".jsonl": bytes, ".jsonl.gz": gzip.compress, ".jsonl.zst": zstandard.compress}[suffix]
    records = [
        {"question": {"stem": "one two three", "choices": [{"text": "four five six"}]}, "id": 7},
        ["seven eight nine", None],
        "ten eleven twelve",
    ]
    path = tmp_path / f"evaluation{suffix}"
    path.write_bytes(pack(b"\xef\xbb\xbf" + b"\n\n".join(json.dumps(record).encode() for record in records)))
    searched = Contamination.from_files([path], 3)
    for sequence in ("one two three", "four five six", "seven eight nine", "ten eleven twelve"):
        assert searched.find(f"some {sequence} more") == sequence
    assert searched.find("two three four") is None
    assert len(searched) == 4


@pytest.mark.parametrize("line", [b'{"text": ', b'"\xff"', b"[" * 100_000])
def test_an_evaluation_file_that_is_no_json_is_the_users_mistake(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "evaluation.jsonl"
    path.write_bytes(b'"one two three"\n' + line)
    with pytest.raises(UserError, match="evaluation.jsonl: line 2 of this evaluation file"):
        Contamination.from_files([path], 3)


def test_evaluation_files_that_cannot_find_anything_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.jsonl"
    path.write_text('{"text": "one two three"}\n')
    with pytest.raises(UserError, match="no string in .*evaluation.jsonl has 4 words"):
        Contamination.from_files([path], 4)
    with pytest.raises(WorldError, match="gone.jsonl"):
        Contamination.from_files([tmp_path / "gone.jsonl"], 4)
