"""Long lines are read as `json.loads` reads them, refused as it refuses them, and in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokenization.documents import pieces_of
from tokenization.sources.long_lines import JsonText, OverlongLine, OverlongRecord, parse_long_line, split_lines

# What strings are spelled with: plain characters, every kind of escape, halves of pairs, and what is no JSON.
SPELLINGS = (
    *("a", "bcdefg", " ", "é", "東", "🙂", "{", "]", ",", ":", "\\n", "\\\\", '\\"', "\\/", "\\\\\\\\\\\\"),
    *("\\u0041", "\\u00e9", "\\u6771", "\\ud83d\\ude42", "\\uD83D", "\\uDE42", "\\\\ud83d", "\\u0000"),
)
WRONG_SPELLINGS = ("\\x", "\\u12", "\\u12x4", "\t", "\x00", "\\", '"', "\\ud83d\\u12")

spelled = st.lists(st.sampled_from(SPELLINGS), max_size=60).map(lambda parts: '"' + "".join(parts) + '"')
numbers = st.sampled_from(["0", "-1.5e3", "true", "null", "NaN", "12345678901234567890"])
spelled_records = st.recursive(
    spelled | numbers,
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda items: "[" + ", ".join(items) + "]")
        | st.lists(st.tuples(spelled, inner), max_size=4).map(
            lambda items: "{" + ",".join(f"{key} :{value}" for key, value in items) + "}"
        )
    ),
    max_leaves=12,
)


def parse(line: bytes | bytearray, longest_string: int = 3) -> Any:
    return parse_long_line(line, longest_string=longest_string, piece_bytes=32)


def parse_plainly(line: bytes) -> Any:
    return json.loads(line.decode())


def plain(record: Any) -> Any:
    """`record` with every JsonText as the string it stands for."""
    if isinstance(record, JsonText):
        text = "".join(record.pieces())
        assert "".join(pieces_of(record)) == text  # as often as asked
        try:
            text_bytes = len(text.encode())
        except UnicodeEncodeError:
            with pytest.raises(UnicodeEncodeError, match="surrogates not allowed .character"):
                _ = record.text_bytes
        else:
            assert record.text_bytes == text_bytes
        return text
    if isinstance(record, dict):
        return {key: plain(value) for key, value in record.items()}
    return [plain(value) for value in record] if isinstance(record, list) else record


def outcome(function, line: bytes) -> Any:
    """What parsing comes to; NaN is unequal to itself, so values are compared by their spelling."""
    try:
        return repr(plain(function(line)))
    except UnicodeDecodeError as error:
        return "not UTF-8", str(error), error.object
    except ValueError as error:
        return type(error), str(error)


@settings(max_examples=150, deadline=None)
@given(spelled_records)
@example('"' + "\\\\" * 40 + '"')
@example('{"a": "' + "x" * 29 + '\\ud83d\\ude42"}')
@example('"' + "\\ud83d\\ude42" * 20 + '"')
@example('"' + "\\ud83d" * 20 + '"')
def test_any_record_is_what_json_makes_of_it(spelling: str) -> None:
    line = spelling.encode()
    expected = outcome(parse_plainly, line)
    assert outcome(parse, line) == expected
    assert outcome(lambda content: parse(bytearray(content)), line) == expected


@settings(max_examples=150, deadline=None)
@given(spelled_records, st.lists(st.sampled_from(WRONG_SPELLINGS), min_size=1, max_size=2), st.data())
def test_what_json_refuses_is_refused_alike(spelling: str, wrong: list[str], data: st.DataObject) -> None:
    for part in wrong:
        place = data.draw(st.integers(0, len(spelling)))
        spelling = spelling[:place] + part + spelling[place:]
    cut = data.draw(st.integers(0, len(spelling)))
    for content in (spelling, spelling[:cut]):
        assert outcome(parse, content.encode()) == outcome(parse_plainly, content.encode())


@settings(max_examples=150, deadline=None)
@given(spelled_records, st.binary(min_size=1, max_size=8).map(lambda raw: raw.replace(b"\n", b"\r")), st.data())
@example('"' + "🙂" * 40 + '"', b"\x80" * 5, None)
def test_bytes_that_are_no_utf8_are_named_alike(spelling: str, bad: bytes, data: st.DataObject | None) -> None:
    line = spelling.encode()
    place = data.draw(st.integers(0, len(line))) if data else 33
    line = line[:place] + bad + line[place:]
    assert outcome(parse, line) == outcome(parse_plainly, line)


def test_only_large_values_are_left_as_they_stand() -> None:
    record = parse(b'{"abcdefgh": ["abcdefgh", "abc", {"abcdefgh": "12345"}]}')
    assert isinstance(record["abcdefgh"][0], JsonText)
    assert record["abcdefgh"][1] == "abc"
    assert "".join(record["abcdefgh"][2]["abcdefgh"].pieces()) == "12345"


def test_depth_and_bulk_beside_the_strings_are_refused() -> None:
    with pytest.raises(RecursionError):
        parse(b"[" * 100_000 + b'"abcdefgh"')
    with pytest.raises(OverlongRecord, match="more than 100 bytes"):
        parse_long_line(b'["' + b"a" * 200 + b'",' + b"1," * 60 + b"1]", longest_string=50, longest_rest=100)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(alphabet="ab\n", max_size=9).map(str.encode), max_size=8), st.integers(1, 12))
def test_lines_come_with_their_places_and_long_ones_with_their_length(blocks: list[bytes], longest: int) -> None:
    whole = b"".join(blocks)
    lines = whole.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    expected, start = [], 0
    for line in lines:
        expected.append((start, line if len(line) <= longest else OverlongLine(len(line))))
        start += len(line) + 1
    assert list(split_lines(iter(blocks), longest)) == expected


MEMORY_OF_A_LARGE_DOCUMENT = """
from tokenization.sources.long_lines import parse_long_line, split_lines

def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) // 1024

def blocks():
    # Spelled with an escape and with a character of four bytes: as a Python string this takes four bytes a letter.
    yield b'{"text": "'
    for number in range(SIZE):
        yield (b"words of a text \\\\n" * 65536)[: 1 << 20] if number % 2 else b"more words of it " * 61680
    yield "🙂".encode() + b'", "meta": {"pile_set_name": "Books3"}}'

before = peak()
(_, line), = split_lines(blocks())
record = parse_long_line(line)
length = sum(len(piece) for piece in record["text"].pieces())
print(peak() - before, record["text"].text_bytes, length, record["meta"]["pile_set_name"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the process's peak memory from /proc")
def test_a_large_document_is_read_in_little_more_than_its_line() -> None:
    size = 64
    program = MEMORY_OF_A_LARGE_DOCUMENT.replace("SIZE", str(size))
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    peak, text_bytes, length, source = finished.stdout.split()
    assert (int(text_bytes) - int(length), source) == (3, "Books3")
    assert int(peak) < 2 * size
