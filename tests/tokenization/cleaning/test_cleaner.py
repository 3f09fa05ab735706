"""Cleaning leaves out what the recipe says, says why, and loses nothing of what it cuts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.recipe_tokenize import CleanSection
from tokenization.cleaning import cleaner as cleaning
from tokenization.cleaning.cleaner import Cleaner, cut_text
from tokenization.cleaning.contamination import Contamination
from tokenization.documents import Document, Rejection, Split, Text, TokenizedDocument, pieces_of
from tokenization.sources.utf8_text import Utf8Text


class Pieces:
    def __init__(self, *pieces: str) -> None:
        self._pieces = pieces

    def pieces(self) -> Iterator[str]:
        return iter(self._pieces)


def whole(text: Text) -> str:
    return "".join(pieces_of(text))


def text_document(text: Text, split: Split = "train") -> Document:
    return Document(text, len(whole(text).encode()), "A", split, "a.jsonl", 7)


def token_document(ids: np.ndarray) -> TokenizedDocument:
    return TokenizedDocument(ids, bytes_of_tokens(ids), "A", "train", "a.npy", 7)


def bytes_of_tokens(ids: np.ndarray) -> int:
    """Token 3 is three bytes long, and so on."""
    return int(ids.sum())


def outcomes(cleaner: Cleaner, *documents: Document | TokenizedDocument) -> list[Any]:
    """For each document its texts (or ids), or the reason why it is left out."""
    results: list[Any] = []
    for document in documents:
        for item in cleaner.clean(document):
            if isinstance(item, Rejection):
                assert (item.file, item.line) == (document.file, document.line)
                results.append(item.reason)
            else:
                results.append(whole(item.text) if isinstance(item, Document) else item.ids.tolist())
    return results


texts = st.lists(st.sampled_from(["a", "bcd", " ", "  ", "\n", "é", "東京", "🙂", "\u3000", "."]), max_size=40).map(
    "".join
)


@settings(max_examples=300, deadline=None)
@given(st.lists(texts, max_size=5), st.integers(4, 30))
@example(["  abcdef"], 4)
@example(["a", "\u3000" * 3], 4)
def test_pieces_of_a_text_are_the_text_and_fit(pieces: list[str], max_bytes: int) -> None:
    text = "".join(pieces)
    parts = list(cut_text(Pieces(*pieces), max_bytes))
    assert parts == list(cut_text(text, max_bytes)) if text else parts == []
    assert "".join(whole(part) for part, _ in parts) == text
    assert [len(whole(part).encode()) for part, _ in parts] == [text_bytes for _, text_bytes in parts]
    assert all(0 < text_bytes <= max_bytes for _, text_bytes in parts)
    rest = text
    for part, text_bytes in parts[:-1]:
        rest = rest[len(whole(part)) :]
        if rest[0].isspace():
            # The next word did not fit.
            next_word = re.match(r"\s\S*", rest)
            assert next_word and text_bytes + len(next_word.group().encode()) > max_bytes
        else:
            # Inside a word: there was no white space to cut at, and no room for one more character.
            assert not any(character.isspace() for character in whole(part).lstrip())
            assert text_bytes + len(rest[0].encode()) > max_bytes


def test_words_stay_whole_and_spaces_go_with_the_word_behind_them() -> None:
    cleaner = Cleaner(CleanSection(max_bytes=12))
    assert outcomes(cleaner, text_document("one two three four\nfive")) == ["one two", " three four", "\nfive"]
    assert outcomes(cleaner, text_document("exactly here")) == ["exactly here"]
    assert outcomes(cleaner, text_document("🙂🙂🙂🙂")) == ["🙂🙂🙂", "🙂"]


def test_cut_documents_keep_their_place_source_and_split() -> None:
    document = text_document("one two three", "validation")
    first, second, third = Cleaner(CleanSection(max_bytes=6)).clean(document)
    for part, text in ((first, "one"), (second, " two"), (third, " three")):
        assert part == Document(text, len(text), "A", "validation", "a.jsonl", 7)


def test_large_pieces_stay_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleaning, "STRING_BYTES", 10)
    text = "naïve 🙂 words " * 20
    parts = list(cut_text(text, 50))
    assert any(isinstance(part, Utf8Text) for part, _ in parts)
    assert "".join(whole(part) for part, _ in parts) == text


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.integers(4, 30))
def test_pieces_of_tokens_are_the_tokens_and_fit(ids: list[int], max_bytes: int) -> None:
    document = token_document(np.array(ids, np.uint16))
    cleaner = Cleaner(CleanSection(max_bytes=max_bytes), bytes_of_tokens=bytes_of_tokens)
    parts = [item for item in cleaner.clean(document) if isinstance(item, TokenizedDocument)]
    assert [token for part in parts for token in part.ids.tolist()] == ids
    for part in parts:
        assert part.text_bytes == bytes_of_tokens(part.ids)
        assert part.text_bytes <= max_bytes or len(part.ids) == 1
        assert (part.file, part.line, part.source, part.split) == ("a.npy", 7, "A", "train")


def test_lengths_are_bytes_and_the_bounds_belong_to_the_texts_kept() -> None:
    cleaner = Cleaner(CleanSection(min_bytes=4, max_bytes=6, too_long="drop"))
    documents = [text_document(text) for text in ("abc", "éé", "abcdef", "ééé", "abcdefg", "東東東")]
    assert outcomes(cleaner, *documents) == ["too_short", "éé", "abcdef", "ééé", "too_long", "too_long"]
    assert outcomes(Cleaner(CleanSection()), *documents[:1]) == ["abc"]
    tokens = [token_document(np.array(ids, np.uint16)) for ids in ([3], [2, 2], [3, 4])]
    assert outcomes(cleaner, *tokens) == ["too_short", [2, 2], "too_long"]


def test_the_documents_that_came_before_are_left_out_by_their_number() -> None:
    cleaner = Cleaner(CleanSection(min_bytes=2), duplicates=np.array([0, 3], np.int64))
    documents = [text_document(text) for text in ("a", "b", "cc", "dd", "ee")]
    assert outcomes(cleaner, *documents) == ["duplicate", "too_short", "cc", "duplicate", "ee"]


def test_contaminated_documents_are_left_out_whole_from_training_only() -> None:
    shared = "the capital of france is paris"
    section = CleanSection(max_bytes=20)
    cleaner = Cleaner(section, contamination=Contamination([shared], 6), bytes_of_tokens=bytes_of_tokens)
    dirty = f"Well: {shared.title()}!"
    (refused,) = cleaner.clean(text_document(dirty))
    assert isinstance(refused, Rejection)
    assert (refused.reason, refused.detail) == ("contaminated", shared)
    (refused,) = cleaner.clean(text_document(Pieces(dirty[:15], dirty[15:])))
    assert isinstance(refused, Rejection)
    assert outcomes(cleaner, text_document(dirty, "validation")) == ["Well: The Capital Of", " France Is Paris!"]
    assert outcomes(cleaner, token_document(np.array([20], np.uint16))) == [[20]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"max_bytes": 3}, "at least 4"), ({"min_bytes": 9, "max_bytes": 8}, "min_bytes is above max_bytes")],
)
def test_bounds_that_leave_nothing_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CleanSection.model_validate(settings)
