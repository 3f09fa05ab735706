"""JSON lines of any length in bounded memory.

One document of 200 MB costs `json.loads` a gigabyte where a single character of it lies outside Latin-1: Python keeps
four bytes for every character then, beside the line and its decoded form. Here the large strings of a line stay as
they stand in it and are decoded in pieces; and a line beyond all measure (a file without line feeds) is passed over.
`tokenization.sources.json_lines` reads through here; lines of ordinary size go to `json.loads` as ever.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tokenization.sources.json_text import SMALLEST_PIECE_BYTES, JsonText, backslashes_before, measure
from tokenization.sources.utf8_text import PIECE_BYTES, check_utf8

LONGEST_LINE_BYTES = 256 << 20
LONGEST_STRING_BYTES = 1 << 20
LONGEST_REST_BYTES = 16 << 20

_KEY_END = re.compile(rb"[ \t\n\r]*:")
_BACKSLASH = 0x5C
# All but those that a single backslash escapes, so that few are left to look at one by one.
_QUOTE = re.compile(rb'"(?<![^\\]\\")')


@dataclass(frozen=True)
class OverlongLine:
    """Stands for a line that was passed over."""

    bytes: int
    """Its length, without the line feed."""


class OverlongRecord(ValueError):
    """A record that is large beside its large strings; as Python objects it would take many times its length."""


def split_lines(
    blocks: Iterator[bytes], longest: int = LONGEST_LINE_BYTES
) -> Iterator[tuple[int, bytes | bytearray | OverlongLine]]:
    """Cut blocks at line feeds; yields each line without it, after the offset of its first byte in all blocks.

    Of a line of more than `longest` bytes only the length is told. Holds no more than `longest` bytes and one block.
    A line that is large and spans blocks comes as the bytearray it was collected in, to spare a second copy of it.
    """
    start = 0
    unfinished = bytearray()
    passed_over = 0
    for block in blocks:
        first, *others = block.split(b"\n")
        if passed_over or len(unfinished) + len(first) > longest:
            passed_over += len(unfinished) + len(first)
            unfinished = bytearray()
        else:
            unfinished += first
        if not others:
            continue
        length = passed_over or len(unfinished)
        yield start, OverlongLine(length) if passed_over else _finished(unfinished)
        start += length + 1
        last = others.pop()
        for line in others:
            yield start, line if len(line) <= longest else OverlongLine(len(line))
            start += len(line) + 1
        passed_over = len(last) if len(last) > longest else 0
        unfinished = bytearray(b"" if passed_over else last)
    if passed_over or unfinished:
        yield start, OverlongLine(passed_over) if passed_over else _finished(unfinished)


def _finished(line: bytearray) -> bytes | bytearray:
    return line if len(line) > PIECE_BYTES else bytes(line)


def parse_long_line(
    line: bytes | bytearray,
    longest_string: int = LONGEST_STRING_BYTES,
    longest_rest: int = LONGEST_REST_BYTES,
    piece_bytes: int = PIECE_BYTES,
) -> Any:
    """`json.loads(line.decode())`, but values that are strings of more than `longest_string` bytes are `JsonText`s.

    Everything in `line` is checked here and now: raises what `json.loads` would, at the same places
    (`UnicodeDecodeError`; `ValueError`, mostly as `json.JSONDecodeError`; `RecursionError`). The one error of its own
    is `OverlongRecord` (a `ValueError`), where more than `longest_rest` bytes are left without the large strings.
    Memory beside `line`: some times `piece_bytes`, and the Python objects of the rest. `line` is kept by the
    `JsonText`s and must not change.
    """
    if piece_bytes < SMALLEST_PIECE_BYTES:
        raise ValueError(f"piece_bytes is {piece_bytes}, at least {SMALLEST_PIECE_BYTES} are needed")
    check_utf8(line, piece_bytes)
    rest = _Rest(longest_rest)
    texts: dict[str, JsonText] = {}
    # Nothing that anybody writes into a line can be taken for a placeholder of this call.
    mark = secrets.token_hex(16)
    taken = quote = 0
    while (quote := line.find(b'"', quote)) >= 0:
        closing = _closing_quote(line, quote + 1)
        end = closing if closing >= 0 else len(line)
        large = end - quote - 1 > longest_string
        if large and not (closing >= 0 and _KEY_END.match(line, closing + 1)):
            rest.add(line, taken, quote)
            placeholder = f"{mark}{len(texts)}"
            try:
                characters, text_bytes = measure(line, quote + 1, end, piece_bytes, closed=closing >= 0)
            except json.JSONDecodeError as error:
                rest.fail_at_string(f'"{placeholder}"', error)
            rest.add_placeholder(f'"{placeholder}"', characters + 2)
            texts[placeholder] = JsonText(line, quote + 1, end, text_bytes, piece_bytes)
            taken = end + 1
        if closing < 0:
            break
        quote = closing + 1
    rest.add(line, taken, len(line))
    return _put_in(rest.parse(), texts)


class _Rest:
    """A line without its large strings, which knows where in the line its characters stood."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._bytes = 0
        self._texts: list[str] = []
        self._characters = 0
        self._missing: list[tuple[int, int]] = []
        """Behind which character of the rest how many characters of the line are missing."""

    def add(self, line: bytes | bytearray, start: int, end: int) -> None:
        self._bytes += max(0, end - start)
        if self._bytes > self._longest:
            raise OverlongRecord(f"more than {self._longest} bytes beside its large strings")
        text = line[start:end].decode()
        self._texts.append(text)
        self._characters += len(text)

    def add_placeholder(self, placeholder: str, stands_for: int) -> None:
        self._texts.append(placeholder)
        self._characters += len(placeholder)
        self._missing.append((self._characters, stands_for - len(placeholder)))

    def parse(self) -> Any:
        text = "".join(self._texts)
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise json.JSONDecodeError(error.msg, text, self._in_line(error.pos)) from None

    def fail_at_string(self, placeholder: str, error: json.JSONDecodeError) -> None:
        """Raise the error of a string that would come next, or an earlier one of what stands before it."""
        start = self._in_line(self._characters)
        self.add_placeholder(placeholder, len(placeholder))
        try:
            self.parse()
        except json.JSONDecodeError as before:
            if before.pos <= start:
                raise
        raise json.JSONDecodeError(error.msg, "", start + error.pos) from None

    def _in_line(self, position: int) -> int:
        return position + sum(missing for behind, missing in self._missing if behind <= position)


def _closing_quote(line: bytes | bytearray, start: int) -> int:
    """The quote that ends the string whose inside begins at `start`; -1 where none does."""
    quote = start - 1
    while match := _QUOTE.search(line, quote + 1):
        quote = match.start()
        if line[quote - 1] != _BACKSLASH or backslashes_before(line, start, quote) % 2 == 0:
            return quote
    return -1


def _put_in(record: Any, texts: dict[str, JsonText]) -> Any:
    """`record` with the texts in the place of their placeholders; no recursion, however deep the record is."""
    holder = [record]
    waiting: list[dict[str, Any] | list[Any]] = [holder]
    while waiting:
        container = waiting.pop()
        entries = list(container.items()) if isinstance(container, dict) else list(enumerate(container))
        for key, value in entries:
            if isinstance(value, str):
                if value in texts:
                    container[key] = texts[value]  # pyright: ignore[reportArgumentType, reportCallIssue]
            elif isinstance(value, (dict, list)):
                waiting.append(value)
    return holder[0]
