"""Documents from JSON lines (.jsonl, .jsonl.gz, .jsonl.zst), in the Pile's layout or any that field names describe."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.recipe_tokenize import JsonLinesSource
from tokenization.documents import (
    Document,
    Item,
    Reason,
    Rejection,
    Slice,
    SliceEnd,
    Split,
    falls_into_validation,
    printable,
    utf8_bytes,
)
from tokenization.sources.compressed import check_readable, plain_size
from tokenization.sources.find_files import check_unchanged, file_identity, find_files
from tokenization.sources.json_text import JsonText
from tokenization.sources.line_ranges import RawBytes, lines_from
from tokenization.sources.long_lines import LONGEST_LINE_BYTES, OverlongLine, OverlongRecord, parse_long_line

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
LONG_LINE_BYTES = 16 << 20
"""Longer lines are parsed without several copies in memory."""


class JsonLinesReader:
    """Reads the training files in sorted order, then the given validation files.

    A record's source is what `source_field` says, or the recipe's `name` where it says nothing. Blank lines hold no
    record and are passed over. A slice is a range of bytes of a file's plain text and has the lines that begin in it.
    Of a compressed file all that stands before has to be unpacked too, which takes a hundredth of the time that
    encoding it takes.
    """

    def __init__(self, source: JsonLinesSource, seed: int) -> None:
        """Raises `UserError` where a file or pattern finds nothing or a name has an unknown suffix."""
        self._source = source
        self._seed = seed
        self.name = source.name
        self.train_files = find_files(source.train, SUFFIXES)
        self.validation_files = find_files(source.validation, SUFFIXES)
        for path in [*self.train_files, *self.validation_files]:
            check_readable(path)
        self._paths: dict[str, tuple[Path, int]] = {}
        for files in (self.train_files, self.validation_files):
            self._paths.update({printable(str(path)): (path, number) for number, path in enumerate(files)})

    @property
    def text_bytes(self) -> int:
        return sum(self._sizes.values())

    @cached_property
    def _sizes(self) -> dict[Path, int]:
        """Of the plain text; asked by who cuts the work, not by who does it: files are unpacked for it."""
        return {path: plain_size(path) for path in [*self.train_files, *self.validation_files]}

    def slices(self, part_bytes: int) -> list[Slice]:
        cut: list[Slice] = []
        given: list[tuple[Split, list[Path]]] = [("train", self.train_files), ("validation", self.validation_files)]
        for split, files in given:
            for path in files:
                identity = file_identity(path)
                count = max(1, round(self._sizes[path] / part_bytes))
                step = -(-self._sizes[path] // count)
                for number in range(count):
                    # The size of a compressed file's text is an estimate: the last slice takes all that comes.
                    end = None if number == count - 1 else (number + 1) * step
                    name = printable(str(path))
                    cut.append(Slice(name, number * step, end, step, identity, split))
        return cut

    def read(self, piece: Slice, advance: Callable[[int], object]) -> Iterator[Item]:
        path, file_number = self._paths[piece.input]
        check_unchanged(piece.identity, path)
        records = 0
        raw = RawBytes(path, whole=piece.end is None)
        lines = lines_from(path, piece.start, raw, LONGEST_LINE_BYTES)
        told = piece.start
        for start, line in lines:
            if piece.end is not None and start >= piece.end:
                lines.close()
                break
            records += 1
            advance(start - told)
            told = start
            if isinstance(line, OverlongLine):
                detail = f"{line.bytes} bytes without a line feed, more than {LONGEST_LINE_BYTES}"
                yield Rejection(piece.input, records, "line_too_long", detail)
                continue
            if start == 0 and line.startswith(BYTE_ORDER_MARK):
                line = line[len(BYTE_ORDER_MARK) :]
            if line and not line.isspace():
                yield self._parse(line, piece, records, f"{file_number}:{start}")
        # Lines of a file that was written meanwhile may have come twice, or not at all.
        check_unchanged(piece.identity, path)
        yield SliceEnd(records, raw.count, raw.sha256)

    def _parse(self, line: bytes | bytearray, piece: Slice, record_number: int, place: str) -> Document | Rejection:
        def reject(reason: Reason, detail: str) -> Rejection:
            return Rejection(piece.input, record_number, reason, detail)

        try:
            record = parse_long_line(line) if len(line) > LONG_LINE_BYTES else json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            return reject("not_utf8", str(error))
        except OverlongRecord as error:
            return reject("line_too_long", str(error))
        except (ValueError, RecursionError) as error:  # ValueError: JSONDecodeError, and integers beyond Python's limit
            return reject("malformed_json", str(error))
        text = _descend(record, self._source.text_field)
        if text is None:
            return reject("missing_text", f"no field {self._source.text_field}")
        if not isinstance(text, str | JsonText):
            return reject("text_not_a_string", f"{self._source.text_field} is of type {type(text).__name__}")
        named = _descend(record, self._source.source_field)
        name = named if isinstance(named, str) and named.strip() else self._source.name
        try:
            text_bytes = text.text_bytes if isinstance(text, JsonText) else utf8_bytes(text)
            name.encode("utf-8")
        except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair, which is no character
            return reject("not_utf8", str(error))
        split = piece.split
        if split == "train" and falls_into_validation(self._seed, name, place, self._source.validation_share):
            split = "validation"
        return Document(text, text_bytes, name, split, piece.input, record_number)


def _descend(record: Any, dotted: str) -> Any:
    """The value at `dotted` (dots descend into objects); None where there is none."""
    for key in dotted.split("."):
        if not isinstance(record, dict):
            return None
        record = record.get(key)
    return record
