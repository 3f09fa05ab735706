"""Arrow files, mapped into memory: record batches whose columns are views of the file.

Arrow has two layouts, a stream (what `datasets` saves) and a file with a footer; readers take either. A stream that is
cut between two batches looks complete to `pyarrow`, so its end mark is checked here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from pipeline.errors import WorldError

FILE_MAGIC = b"ARROW1"
END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def read_arrow_schema(path: Path) -> pa.Schema:
    """The columns of an Arrow file. Raises `WorldError` where it is none or is cut short."""
    try:
        schema = _open(path).schema
        check_names(list(schema))
        return schema
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def read_arrow_batches(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """The record batches of an Arrow file with only `columns`, in order; their sizes are checked, their values not.

    Raises `WorldError` where the file is none, is corrupt or cut short.
    """
    try:
        reader = _open(path)
        if isinstance(reader, pa.RecordBatchFileReader):
            batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            batches = iter(reader)
        for batch in batches:
            chosen = batch.select(columns)
            chosen.validate()
            yield chosen
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error


def check_names(fields: list[pa.Field]) -> None:
    """Raises `UnicodeDecodeError` where a column, or a field inside of one, has a damaged name."""
    for field in fields:
        field.name  # noqa: B018 - decoded when it is asked for
        if pa.types.is_struct(field.type):
            check_names([field.type.field(number) for number in range(field.type.num_fields)])


def _open(path: Path) -> pa.RecordBatchFileReader | pa.RecordBatchStreamReader:
    with open(path, "rb") as file:
        head = file.read(len(FILE_MAGIC))
        size = file.seek(0, 2)
        file.seek(max(0, size - len(END_OF_STREAM)))
        tail = file.read()
    if size == 0:
        raise pa.ArrowInvalid("it is empty")
    mapped = pa.memory_map(str(path))
    if head == FILE_MAGIC:
        return pa.ipc.open_file(mapped)
    reader = pa.ipc.open_stream(mapped)
    if tail != END_OF_STREAM:
        raise pa.ArrowInvalid("it ends before its data does")
    return reader


def _unreadable(path: Path, error: Exception) -> WorldError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return WorldError(f"{path} cannot be read as an Arrow file ({_first_line(reason)}): fetch it again")


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "no reason given"
