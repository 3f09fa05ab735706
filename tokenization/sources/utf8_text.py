"""Large texts kept as their UTF-8 bytes: as a Python string, one emoji makes a text four times as large."""

from __future__ import annotations

from collections.abc import Iterator

PIECE_BYTES = 1 << 20
LONG_TEXT_BYTES = 16 << 20
"""A larger text is not held as one string."""


class Utf8Text:
    """A `LongText` (`tokenization.documents`) that takes no more memory than its bytes do."""

    def __init__(self, encoded: bytes | bytearray, piece_bytes: int = PIECE_BYTES) -> None:
        """Raises `UnicodeDecodeError` where `encoded` is not UTF-8; it must not change."""
        check_utf8(encoded, piece_bytes)
        self._encoded = encoded
        self._piece_bytes = piece_bytes

    def pieces(self) -> Iterator[str]:
        start = 0
        while start < len(self._encoded):
            end = character_start(self._encoded, start + self._piece_bytes)
            yield self._encoded[start:end].decode()
            start = end


def check_utf8(raw: bytes | bytearray, piece_bytes: int = PIECE_BYTES) -> None:
    """Raises what `raw.decode()` would raise, without its memory."""
    start = 0
    while start < len(raw):
        end = min(start + piece_bytes, len(raw))
        if end < len(raw) and raw[end] & 0xC0 == 0x80:
            # Back to the byte that leads the sequence; where none is near, this byte is no part of one.
            end = next((end - back for back in (1, 2, 3) if raw[end - back] & 0xC0 != 0x80), end)
        try:
            raw[start:end].decode()
        except UnicodeDecodeError as error:
            place = start + error.start
            # The piece's own error may blame the piece's end for what the byte behind it spoils.
            end, reason = _decode_error(raw[place : place + 8])
            raise UnicodeDecodeError("utf-8", bytes(raw), place, place + end, reason) from None
        start = end


def _decode_error(raw: bytes | bytearray) -> tuple[int, str]:
    """Where the invalid sequence that `raw` begins with ends, and what is wrong with it."""
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return error.end, error.reason
    raise AssertionError("a valid sequence")


def character_start(encoded: bytes | bytearray, place: int) -> int:
    """Where the character begins that the byte at `place` belongs to; the end for places behind it."""
    if place >= len(encoded):
        return len(encoded)
    while encoded[place] & 0xC0 == 0x80:
        place -= 1
    return place
