"""Parquet and Arrow files, read by ranges of rows: only the columns asked for, about a megabyte of text at once.

`pyarrow` reads them, as it does inside `datasets`: that way a range of rows is a place in the file, and no other
stretch of it has to be read. Texts come as the bytes that the file holds, so that one that is no UTF-8 costs no more
than its own row.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UserError, WorldError
from tokenization.sources.arrow_files import check_names, read_arrow_batches, read_arrow_schema

BATCH_ROWS = 256
BATCH_BYTES = 1 << 20
"""About what the rows of a batch hold: little, because a group's rows are not all alike."""
BUFFER_BYTES = 1 << 20

FieldPath = tuple[str, ...]
"""A column, and the fields to descend to inside of it."""
Stretch = tuple[int, int, int]
"""First row, row behind the last, about how many bytes of text."""


class TableFile(Protocol):
    """A file of rows."""

    @property
    def schema(self) -> pa.Schema: ...

    def groups(self, column: FieldPath) -> list[tuple[int, int]]:
        """Rows, and about how many bytes of `column`, of each stretch that the file is stored in."""
        ...

    def batches(self, start: int, stop: int | None, columns: list[FieldPath]) -> Iterator[pa.RecordBatch]:
        """The rows from `start` to before `stop`, with what `columns` need; raises `WorldError` for a damaged file."""
        ...


class ParquetTable:
    def __init__(self, path: Path) -> None:
        """Raises `WorldError` where `path` is no Parquet file or is cut short."""
        self._path = path
        with self._open() as file:
            self.schema: pa.Schema = file.schema_arrow
            # Of a damaged file's footer, no more is looked at than has to be: pyarrow does not survive all of it.
            self._columns = {file.schema.column(index).path: index for index in range(len(file.schema))}

    def groups(self, column: FieldPath) -> list[tuple[int, int]]:
        name = ".".join(column)
        found = []
        with self._open() as file:
            for number in range(file.metadata.num_row_groups):
                group = file.metadata.row_group(number)
                found.append((group.num_rows, group.column(self._columns[name]).total_uncompressed_size))
        return found

    def batches(self, start: int, stop: int | None, columns: list[FieldPath]) -> Iterator[pa.RecordBatch]:
        with self._open() as file:
            names = [".".join(column) for column in columns]
            first = 0
            for number in range(file.metadata.num_row_groups):
                group = file.metadata.row_group(number)
                if first + group.num_rows > start and (stop is None or first < stop):
                    size = sum(group.column(self._columns[name]).total_uncompressed_size for name in names)
                    rows = _batch_rows(group.num_rows, size)
                    try:
                        batches = file.iter_batches(rows, row_groups=[number], columns=names, use_threads=False)
                        yield from _between(batches, start - first, None if stop is None else stop - first)
                    except (pa.ArrowException, OSError) as error:
                        raise _unreadable(self._path, error) from error
                first += group.num_rows

    def _open(self) -> pq.ParquetFile:
        try:
            # pre_buffer would hold whole column chunks, as large as the writer of the file liked them.
            file = pq.ParquetFile(
                self._path, buffer_size=BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True
            )
            check_names(list(file.schema_arrow))
            return file
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise _unreadable(self._path, error) from error


class ArrowTable:
    def __init__(self, path: Path) -> None:
        """Raises `WorldError` where `path` is no Arrow file or is cut short."""
        self._path = path
        self.schema = read_arrow_schema(path)

    def groups(self, column: FieldPath) -> list[tuple[int, int]]:
        batches = read_arrow_batches(self._path, [column[0]])
        return [(batch.num_rows, field_of(batch, column).nbytes) for batch in batches]

    def batches(self, start: int, stop: int | None, columns: list[FieldPath]) -> Iterator[pa.RecordBatch]:
        names = list(dict.fromkeys(column[0] for column in columns))
        for batch in _between(read_arrow_batches(self._path, names), start, stop):
            rows = _batch_rows(batch.num_rows, sum(field_of(batch, column).nbytes for column in columns))
            for first in range(0, batch.num_rows, rows):
                part = batch.slice(first, rows)
                try:
                    # What a text's offsets point at is followed next, and must lie in the file.
                    part.validate(full=True)
                except pa.ArrowInvalid as error:
                    if "UTF8" not in str(error):
                        raise _unreadable(self._path, error) from error
                yield part


def stretches(groups: list[tuple[int, int]], part_bytes: int) -> list[Stretch]:
    """Ranges of rows of about `part_bytes` of text: groups are put together, and cut evenly where they hold more."""
    found: list[Stretch] = []
    start = first = held = 0
    for rows, size in groups:
        if held and held + size > part_bytes:
            found.append((start, first, held))
            start, held = first, 0
        pieces = max(1, min(rows, -(-size // part_bytes)))
        for piece in range(1, pieces):
            stop = first + rows * piece // pieces
            found.append((start, stop, size // pieces))
            start = stop
        held += size // pieces
        first += rows
    if first > start or not found:
        found.append((start, first, held))
    return found


def find_field(schema: pa.Schema, dotted: str, where: str) -> FieldPath:
    """Where `dotted` stands in `schema`: a column of that name, or a field that its dots descend to.

    Raises `UserError` where there is none, naming the nearest, where there are two of the name, and where it does not
    hold text.
    """
    listed = list(_fields(schema))
    fields = dict(listed)
    path = next((path for path in fields if ".".join(path) == dotted), None)
    if path is None:
        names = [".".join(path) for path in fields]
        near = difflib.get_close_matches(dotted, names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(names)}"
        raise UserError(f"{where} has no column {dotted}: {hint}")
    names = [name for name, _ in listed]
    for depth in range(1, len(path) + 1):
        if (times := names.count(path[:depth])) > 1:
            raise UserError(f"{where} has {times} columns of the name {'.'.join(path[:depth])}: rename all but one")
    if not _is_text(fields[path]):
        raise UserError(f"{where}: its column {dotted} holds {fields[path]}, not text")
    return path


def field_of(batch: pa.RecordBatch, path: FieldPath) -> pa.Array:
    """The values at `path`; null where one of the objects around it is."""
    values = batch.column(path[0])
    for name in path[1:]:
        values = values.flatten()[values.type.get_field_index(name)]
    return values


def texts_of(values: pa.Array) -> Iterator[bytes | None]:
    """Text values as the bytes that are stored, each copied when it is asked for."""
    if pa.types.is_dictionary(values.type):
        words = _as_bytes(values.dictionary)
        for number in values.indices:
            yield words[number.as_py()].as_py() if number.is_valid else None
    else:
        for value in _as_bytes(values):
            yield value.as_py()


def _as_bytes(values: pa.Array) -> pa.Array:
    """Text as bytes, of which `as_py` asks no UTF-8; nothing is copied but views of strings."""
    if pa.types.is_null(values.type):
        return values
    if pa.types.is_string_view(values.type):
        values = values.cast(pa.large_string())
    return values.cast(pa.binary() if pa.types.is_string(values.type) else pa.large_binary())


def _fields(schema: pa.Schema) -> Iterator[tuple[FieldPath, pa.DataType]]:
    waiting: list[tuple[FieldPath, pa.DataType]] = [((field.name,), field.type) for field in schema]
    while waiting:
        path, kind = waiting.pop(0)
        yield path, kind
        if pa.types.is_struct(kind):
            inner = [kind.field(number) for number in range(kind.num_fields)]
            waiting.extend(((*path, field.name), field.type) for field in inner)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_null(kind)
    )


def _batch_rows(rows: int, size: int) -> int:
    """How many of `rows` rows of `size` bytes to take at once."""
    return max(1, min(BATCH_ROWS, BATCH_BYTES * rows // max(1, size)))


def _between(batches: Iterator[pa.RecordBatch], start: int, stop: int | None) -> Iterator[pa.RecordBatch]:
    """The rows from `start` to before `stop` of `batches`."""
    first = 0
    for batch in batches:
        if stop is not None and first >= stop:
            return
        low = max(0, start - first)
        high = batch.num_rows if stop is None else min(batch.num_rows, stop - first)
        if low < high:
            yield batch.slice(low, high - low)
        first += batch.num_rows


def _unreadable(path: Path, error: Exception) -> WorldError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    lines = reason.strip().splitlines()
    return WorldError(f"{path} cannot be read as a Parquet or Arrow file ({lines[0] if lines else 'damaged'})")
