"""How large the records of a JSON or CSV file are, found out before `datasets` reads it.

`datasets` holds a record up to fifteen times over, as bytes, columns and strings (a JSON array even as a whole), and
has no limit. So the file is read once before, which takes little of the time that tokenizing it takes, and what is too
large to hold is refused.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from pipeline.errors import UserError, WorldError

LONGEST_RECORD_BYTES = 32 << 20
"""Of a record, and of the records of a CSV file that are read at once."""
LONGEST_ARRAY_BYTES = 64 << 20
"""Of a JSON file that is one array of records."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def check_json_records(path: Path, end: int | None = None) -> None:
    """Look at the records that begin before byte `end` of the text; of a JSON array, at all of it.

    Raises `UserError` where one is larger than it may be, `WorldError` where the file cannot be read.
    """
    place = 0
    is_array: bool | None = None
    with _opened(path, "json") as file:
        while line := file.readline(LONGEST_RECORD_BYTES + 1):
            if is_array is None and not line.isspace():
                is_array = line[:100].removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"[")
            place += len(line)
            if is_array and place > LONGEST_ARRAY_BYTES:
                raise _too_large(path, "it is one array and", LONGEST_ARRAY_BYTES)
            if not is_array and len(line) > LONGEST_RECORD_BYTES:
                raise _too_large(path, f"the record at byte {place - len(line):,}")
            if not is_array and end is not None and place >= end:
                return


def csv_rows_at_once(path: Path, separator: str, most: int) -> int:
    """How many records of a CSV file to read at once, `most` at most: any so many hold `LONGEST_RECORD_BYTES` or less.

    Raises `UserError` where one record is larger, `WorldError` where the file cannot be read.
    """
    largest = widest = together = 0
    window: deque[int] = deque()
    for record in csv_records(path, separator):
        size = sum(map(len, record))
        if size > LONGEST_RECORD_BYTES:
            raise _too_large(path, "a record")
        largest = max(largest, size)
        window.append(size)
        together += size
        if len(window) > most:
            together -= window.popleft()
        widest = max(widest, together)
    return most if widest <= LONGEST_RECORD_BYTES else min(most, LONGEST_RECORD_BYTES // largest)


def csv_records(path: Path, separator: str, encoding: str = "latin-1") -> Generator[list[str], None, None]:
    """The fields of each record, with the limits of `csv_rows_at_once`; in Latin-1, which takes any byte, a character
    stands for each byte."""
    limit = csv.field_size_limit()
    csv.field_size_limit(LONGEST_RECORD_BYTES)
    try:
        with _opened(path, "csv") as file:
            text = io.TextIOWrapper(file, encoding=encoding, newline="")
            yield from csv.reader(_lines(path, text), delimiter=separator)
    finally:
        csv.field_size_limit(limit)


def _lines(path: Path, text: io.TextIOWrapper) -> Iterator[str]:
    while line := text.readline(LONGEST_RECORD_BYTES + 1):
        if len(line) > LONGEST_RECORD_BYTES:
            raise _too_large(path, "a line")
        yield line


@contextmanager
def _opened(path: Path, file_format: str) -> Iterator[BinaryIO]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            yield cast(BinaryIO, file)
    except csv.Error as error:
        if "field limit" in str(error):
            raise _too_large(path, "a field") from error
        raise _unreadable(path, file_format, error) from error
    except (OSError, EOFError, UnicodeError, zlib.error) as error:
        raise _unreadable(path, file_format, error) from error


def _unreadable(path: Path, file_format: str, error: Exception) -> WorldError:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return WorldError(f"{path} cannot be read as {file_format} ({reason}): fetch it again")


def _too_large(path: Path, what: str, limit: int | None = None) -> UserError:
    most = LONGEST_RECORD_BYTES if limit is None else limit
    return UserError(
        f"{path}: {what} has more than {most >> 20} MiB, too much to hold: make it JSON lines and read "
        "them with kind: jsonl, or Parquet"
    )
