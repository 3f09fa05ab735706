"""What kind of token it is: by its text alone, so that every vocabulary of pieces is told the same way."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

WORD_START, INSIDE_WORD, NUMBER, PUNCTUATION, SPACE = "word start", "inside a word", "number", "punctuation", "space"
PART_OF_CHARACTER, END_OF_DOCUMENT = "part of a character", "end of document"
KINDS = (WORD_START, INSIDE_WORD, NUMBER, PUNCTUATION, SPACE, PART_OF_CHARACTER, END_OF_DOCUMENT)


def kind_of(text: str) -> str:
    """Of a token's text as it is decoded alone."""
    bare = text.strip()
    if not bare:
        return SPACE
    if "\N{REPLACEMENT CHARACTER}" in bare:
        return PART_OF_CHARACTER
    first = bare[0]
    if first.isdecimal():
        return NUMBER
    if first.isalpha() or unicodedata.category(first).startswith("M"):
        return WORD_START if text[0].isspace() else INSIDE_WORD
    return PUNCTUATION


def kinds_of(tokenizer: Any, ids: Sequence[int], end_of_document_id: int) -> list[int]:
    """Place in KINDS for each token id."""
    texts = tokenizer.batch_decode([[token] for token in ids], clean_up_tokenization_spaces=False)
    pairs = zip(ids, texts, strict=True)
    return [KINDS.index(END_OF_DOCUMENT if token == end_of_document_id else kind_of(text)) for token, text in pairs]
