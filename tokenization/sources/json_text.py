"""Large strings of a JSON line, left as they stand there and decoded in pieces.

`long_lines` finds them in their line and takes them out. A piece must not end inside an escape, a UTF-8
sequence, or a pair of escapes that spell one character together; else its two sides would be other text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from tokenization.documents import utf8_bytes

# An escape, a pair of them and a UTF-8 sequence all fit several times, so that a cut moved back always moves on.
SMALLEST_PIECE_BYTES = 32

_HIGH_SURROGATE = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}")
_LOW_SURROGATE = re.compile(rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}")


class JsonText:
    """A string of a JSON line, left as it stands there: a `LongText` (`tokenization.documents`)."""

    def __init__(
        self, line: bytes | bytearray, start: int, end: int, text_bytes: int | UnicodeEncodeError, piece_bytes: int
    ) -> None:
        """The string without its quotes is line[start:end], and is known to be valid; `line` must not change."""
        self._line = line
        self._start = start
        self._end = end
        self._text_bytes = text_bytes
        self._piece_bytes = piece_bytes

    @property
    def text_bytes(self) -> int:
        """Length in UTF-8. Raises `UnicodeEncodeError`, as encoding would, where half of a surrogate pair is in it."""
        if isinstance(self._text_bytes, UnicodeEncodeError):
            raise self._text_bytes
        return self._text_bytes

    def pieces(self) -> Iterator[str]:
        for start, end in _stretches(self._line, self._start, self._end, self._piece_bytes):
            yield json.loads(f'"{self._line[start:end].decode()}"')


def measure(
    line: bytes | bytearray, start: int, end: int, piece_bytes: int, closed: bool
) -> tuple[int, int | UnicodeEncodeError]:
    """Check the string line[start:end], which no quote ends where it is not `closed`.

    Returns how many characters it takes in `line`, and the bytes of its text in UTF-8 (or why it has none).

    Raises `JSONDecodeError` with the position counted from the opening quote.
    """
    characters = text_characters = 0
    text_bytes: int | UnicodeEncodeError = 0
    for piece_start, piece_end in _stretches(line, start, end, piece_bytes):
        raw = line[piece_start:piece_end].decode()
        quote = '"' if closed or piece_end < end else ""
        try:
            text = json.loads(f'"{raw}{quote}')
        except json.JSONDecodeError as error:
            position = 0 if error.msg.startswith("Unterminated") else characters + error.pos
            raise json.JSONDecodeError(error.msg, "", position) from None
        try:
            if not isinstance(text_bytes, UnicodeEncodeError):
                text_bytes += utf8_bytes(text)
        except UnicodeEncodeError as error:
            place = f"{error.reason} (character {text_characters + error.start} of the text)"
            text_bytes = UnicodeEncodeError("utf-8", text[error.start], 0, 1, place)
        characters += len(raw)
        text_characters += len(text)
    return characters, text_bytes


def _stretches(line: bytes | bytearray, start: int, end: int, piece_bytes: int) -> Iterator[tuple[int, int]]:
    """Cut the inside of a JSON string where its two sides are decoded alone to what they are together."""
    while end - start > piece_bytes:
        cut = _safe_cut(line, start, start + piece_bytes)
        yield start, cut
        start = cut
    if start < end:
        yield start, end


def _safe_cut(line: bytes | bytearray, start: int, cut: int) -> int:
    # After an even number of backslashes another one begins an escape; after an odd number it is the end of one.
    while line[cut] & 0xC0 == 0x80:
        cut -= 1
    backslash = line.rfind(b"\\", max(start, cut - 5), cut)
    if backslash >= 0 and backslashes_before(line, start, backslash) % 2 == 0:
        length = 6 if line[backslash + 1] == ord("u") else 2
        if backslash + length > cut:
            cut = backslash
    high = cut - 6
    if (
        high > start
        and _HIGH_SURROGATE.match(line, high)
        and _LOW_SURROGATE.match(line, cut)
        and backslashes_before(line, start, high) % 2 == 0
    ):
        cut = high
    return cut


def backslashes_before(line: bytes | bytearray, start: int, end: int) -> int:
    """How many backslashes stand in a row in front of `end`, counted back to `start` at most."""
    window = 64
    while True:
        before = line[max(start, end - window) : end]
        count = len(before) - len(before.rstrip(b"\\"))
        if count < len(before) or len(before) < window:
            return count
        window *= 16
