"""UTF-8 in pieces is the text it encodes, and what is not UTF-8 is refused as Python refuses it."""

from __future__ import annotations

from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokenization.sources.utf8_text import Utf8Text, check_utf8


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from("ab é東🙂\n"), max_size=40), st.integers(4, 9))
def test_a_text_comes_back_in_pieces_as_often_as_asked(text: str, piece_bytes: int) -> None:
    encoded = Utf8Text(text.encode(), piece_bytes)
    for _ in range(2):
        pieces = list(encoded.pieces())
        assert "".join(pieces) == text
        assert all(0 < len(piece.encode()) <= piece_bytes for piece in pieces)


sequences = st.sampled_from([b"a", "é".encode(), "東".encode(), "🙂".encode(), b"\x80", b"\xf0\x9f", b"\xe6", b"\xff"])


@settings(max_examples=300, deadline=None)
@given(st.lists(sequences, max_size=12).map(b"".join), st.integers(4, 9))
@example("🙂".encode() + b"\x80" * 9, 4)
@example(b"abc" + "東".encode()[:2] + "🙂".encode(), 5)
def test_what_is_no_utf8_is_told_as_python_tells_it(raw: bytes, piece_bytes: int) -> None:
    def told(check: Any) -> Any:
        try:
            check()
        except UnicodeDecodeError as error:
            return error.object, error.start, error.end, error.reason
        return None

    assert told(lambda: check_utf8(raw, piece_bytes)) == told(raw.decode)
    assert told(lambda: check_utf8(bytearray(raw), piece_bytes)) == told(raw.decode)
