"""Leaves documents out, or cuts them, as the recipe's clean section says; and tells why.

What needs more than the document itself is found elsewhere: duplicates by `duplicates` in a pass of its own before,
shared word sequences by `contamination`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from pipeline.recipe_tokenize import CleanSection
from tokenization.cleaning.contamination import Contamination
from tokenization.documents import Document, Reason, Rejection, Text, TokenizedDocument, pieces_of
from tokenization.sources.utf8_text import Utf8Text, character_start

STRING_BYTES = 4 << 20
"""Cut pieces up to this size are strings; larger ones stay in UTF-8 and are decoded in pieces."""
SHOWN_CHARACTERS = 200
"""Of a shared word sequence, in the rejection: words may be of any length."""
_FIRST_WINDOW_BYTES = 256

Cleaned = Document | TokenizedDocument | Rejection


class Cleaner:
    """Cleans the documents of one part.

    In this order, and the first reason counts: a document that came before (`duplicate`), `too_short`, `too_long`,
    `contaminated`; what is left and too long to stay whole is cut last. So a document that shares a word sequence with
    an evaluation set is left out as a whole, and the pieces of a cut one are kept however short the last one is.

    Only training documents can be contaminated: to be measured on what an evaluation also asks does no harm.
    """

    def __init__(
        self,
        section: CleanSection,
        duplicates: np.ndarray | None = None,
        contamination: Contamination | None = None,
        bytes_of_tokens: Callable[[np.ndarray], int] | None = None,
    ) -> None:
        """`duplicates` are what `duplicates_in` found in the part; `bytes_of_tokens` gives the bytes of text of ids.

        Both, and `contamination`, are needed where the section asks for what is done with them.
        """
        self._section = section
        self._duplicates = np.empty(0, np.int64) if duplicates is None else duplicates
        self._contamination = contamination
        self._bytes_of_tokens = bytes_of_tokens
        self._number = 0
        self._duplicates_met = 0

    def clean(self, document: Document | TokenizedDocument) -> Iterator[Cleaned]:
        """What becomes of the part's next document: itself, its pieces in order, or its rejection.

        Every document of the part has to come here, in order: duplicates are known by their number.

        Of a `TokenizedDocument`, duplicates are by ids and lengths by `text_bytes`; it is cut between tokens, anywhere;
        and it has no words to compare with evaluation sets: what was tokenized before must have been filtered before.
        """
        reason = self._reason(document, self._came_before())
        if reason is not None:
            return iter([Rejection(document.file, document.line, *reason)])
        if not self._section.max_bytes or document.text_bytes <= self._section.max_bytes:
            return iter([document])
        if isinstance(document, TokenizedDocument):
            return self._cut_tokens(document)
        pieces = cut_text(document.text, self._section.max_bytes)
        return (replace(document, text=text, text_bytes=text_bytes) for text, text_bytes in pieces)

    def _came_before(self) -> bool:
        found = self._duplicates_met < len(self._duplicates) and self._duplicates[self._duplicates_met] == self._number
        self._duplicates_met += int(found)
        self._number += 1
        return bool(found)

    def _reason(self, document: Document | TokenizedDocument, came_before: bool) -> tuple[Reason, str] | None:
        """Why the document is left out, and the details; None where it stays."""
        section = self._section
        if came_before:
            return "duplicate", "an equal document came before"
        if document.text_bytes < section.min_bytes:
            return "too_short", f"{document.text_bytes} bytes, fewer than {section.min_bytes}"
        if section.too_long == "drop" and 0 < section.max_bytes < document.text_bytes:
            return "too_long", f"{document.text_bytes} bytes, more than {section.max_bytes}"
        if self._contamination is None or document.split != "train" or isinstance(document, TokenizedDocument):
            return None
        sequence = self._contamination.find(document.text)
        return None if sequence is None else ("contaminated", sequence[:SHOWN_CHARACTERS])

    def _cut_tokens(self, document: TokenizedDocument) -> Iterator[TokenizedDocument]:
        """Pieces of as many tokens as have `max_bytes` bytes if bytes are spread evenly, or fewer where they are not.

        A single token of more bytes than that is a piece of its own.
        """
        assert self._bytes_of_tokens is not None
        largest = self._section.max_bytes
        tokens = max(1, len(document.ids) * largest // document.text_bytes)
        start = 0
        while start < len(document.ids):
            count = min(tokens, len(document.ids) - start)
            while (text_bytes := self._bytes_of_tokens(document.ids[start : start + count])) > largest and count > 1:
                count = max(1, min(count - 1, count * largest // text_bytes))
            yield replace(document, ids=document.ids[start : start + count], text_bytes=text_bytes)
            start += count


def cut_text(text: Text, max_bytes: int) -> Iterator[tuple[Text, int]]:
    """`text` in pieces of at most `max_bytes` UTF-8 bytes, each with its bytes; joined, they are the text.

    Cut in front of white space, which goes with the word behind it as tokenizers take it; inside a word only where
    one is longer than a piece. `max_bytes` is 4 or more. Holds one piece and one of the text's own pieces.
    """
    waiting = bytearray()
    for piece in pieces_of(text):
        waiting += piece.encode()
        while len(waiting) > max_bytes:
            cut = _cut_place(waiting, max_bytes)
            yield _as_text(waiting[:cut]), cut
            del waiting[:cut]
    if waiting:
        yield _as_text(waiting), len(waiting)


def _as_text(encoded: bytearray) -> Text:
    return encoded.decode() if len(encoded) <= STRING_BYTES else Utf8Text(encoded)


def _cut_place(encoded: bytearray, max_bytes: int) -> int:
    """The last place up to `max_bytes` that has white space behind it and words before it; without any, the last
    character's start up to `max_bytes`. `encoded` is longer than that."""
    limit = character_start(encoded, max_bytes)
    behind = limit + 1
    while behind < len(encoded) and encoded[behind] & 0xC0 == 0x80:
        behind += 1
    # Words are mostly short: look back a little way first.
    window = _FIRST_WINDOW_BYTES
    while True:
        start = character_start(encoded, max(0, limit - window))
        text = encoded[start:behind].decode()
        if text[-1].isspace():
            return limit
        space = len(text) - len(text.rsplit(None, 1)[-1]) - 1
        if space >= 0 and (start > 0 or text[:space].strip()):
            return behind - len(text[space:].encode())
        if start == 0:
            return limit
        window *= 8
