"""Rows out of `datasets` in streaming mode: JSON and CSV files, and folders, of this machine.

`datasets` takes a second to import and prints what it does; it is imported where it is used and kept quiet here. In
streaming mode it still puts lock files into its cache, so it gets a temporary folder for one.
"""

from __future__ import annotations

import glob
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError, WorldError
from tokenization.sources.record_sizes import check_json_records, csv_records, csv_rows_at_once
from tokenization.sources.table_files import BATCH_ROWS, FieldPath, find_field

if TYPE_CHECKING:
    from datasets import DatasetBuilder, IterableDataset

JSON_CHUNK_BYTES = 10 << 20
"""What `datasets` reads of a JSON file to find its columns, to the end of the record there."""
FILE_FORMATS = ("parquet", "arrow", "json", "csv")


class StreamFile:
    """A JSON or CSV file here, read as a whole."""

    def __init__(self, path: Path, file_format: str) -> None:
        self._path = path
        self._format = file_format

    def find_fields(self, names: list[str]) -> list[FieldPath]:
        """Where the named fields stand; a JSON file may have them in later records only, which none can know.

        Raises `UserError` where there is none of the name, `WorldError` where the file's beginning is damaged.
        """
        if self._format == "csv":
            header = self._csv_header()
            for name in names:
                if name not in header:
                    _missing(name, header, str(self._path))
            return [(name,) for name in names]
        check_json_records(self._path, JSON_CHUNK_BYTES + 1)
        with self._stream([]) as rows:
            return find_stream_fields(rows, names, str(self._path))

    def rows(self, fields: list[FieldPath]) -> Iterator[list[Any]]:
        """The values of `fields` in each record.

        Raises `WorldError` where the file is damaged, `UserError` where a record is too large to hold.
        """
        rows_at_once = BATCH_ROWS
        if self._format == "csv":
            rows_at_once = csv_rows_at_once(self._path, self._separator(), BATCH_ROWS)
        else:
            check_json_records(self._path)
        with self._stream([path[0] for path in fields], rows_at_once) as rows:
            for row in rows:
                yield [descend(row, path) for path in fields]

    @contextmanager
    def _stream(self, columns: list[str], rows_at_once: int = BATCH_ROWS) -> Iterator[IterableDataset]:
        import datasets

        if self._path.stat().st_size == 0:
            raise WorldError(f"{self._path} is empty: fetch it again")
        options: dict[str, Any] = {}
        if self._format == "csv":
            # Without these, pandas takes "NA" and "null" for no text, and "5" for a number. The columns that are not
            # wanted are read too: told to leave them out, it no longer sees that a row has too many.
            options = {
                "sep": self._separator(),
                "keep_default_na": False,
                "na_values": [""],
                "chunksize": rows_at_once,
                "features": datasets.Features({name: datasets.Value("string") for name in columns}),
            }
        with quiet_datasets() as cache:
            try:
                rows = datasets.load_dataset(
                    self._format,
                    data_files={"train": [glob.escape(str(self._path))]},
                    split="train",
                    streaming=True,
                    cache_dir=cache,
                    **options,
                )
                if columns and rows.features and set(columns) <= set(rows.features):
                    rows = rows.select_columns(columns)
                yield rows
            except (OSError, EOFError, ValueError, RuntimeError, StopIteration, zlib.error) as error:
                hint = ", or read JSON lines record by record with kind: jsonl" if self._format == "json" else ""
                raise WorldError(
                    f"{self._path} cannot be read as {self._format} ({first_line(error)}): mend it, fetch it again"
                    + hint
                ) from error

    def _csv_header(self) -> list[str]:
        with closing(csv_records(self._path, self._separator(), "utf-8-sig")) as records:
            header, first = next(records, []), next(records, None)
        if not header:
            raise WorldError(f"{self._path} is empty: fetch it again")
        # pandas would take what is too much for row names and shift the columns.
        if first and len(first) > len(header):
            raise UserError(
                f"{self._path}: its header names {len(header)} columns, its first row has {len(first)}: is the "
                "separator right (, in .csv, tabulator in .tsv)?"
            )
        return header

    def _separator(self) -> str:
        return "\t" if ".tsv" in self._path.suffixes else ","


def folder_files(folder: Path, subset: str) -> tuple[str, dict[str, list[Path]]]:
    """The format of a folder's files, and by split which they are, as `datasets` makes them out.

    Raises `UserError` where it makes out none, or another format than those of `FILE_FORMATS`.
    """
    import datasets

    with quiet_datasets() as cache:
        try:
            builder = datasets.load_dataset_builder(str(folder), name=subset or None, cache_dir=cache)
        except (ValueError, RuntimeError, OSError) as error:
            raise UserError(f"{folder} is no folder of data that can be read: {first_line(error)}") from error
    file_format = format_of(builder)
    if file_format not in FILE_FORMATS:
        raise UserError(f"{folder} holds {file_format} files: {', '.join(FILE_FORMATS)} are read (text: kind: text)")
    data_files = builder.config.data_files or {}
    return file_format, {str(split): [Path(name) for name in names] for split, names in data_files.items()}


def find_stream_fields(rows: IterableDataset, names: list[str], where: str) -> list[FieldPath]:
    """Where the named fields stand in `rows`, by their types or else by the first row."""
    if rows.features:
        opaque = {name for name, feature in rows.features.items() if type(feature).__name__ == "Json"}
        schema = rows.features.arrow_schema
        # Columns of mixed types have no fields to look up; each row shows what it has.
        return [
            tuple(name.split(".")) if name.split(".")[0] in opaque else find_field(schema, name, where)
            for name in names
        ]
    first = next(iter(rows), None)
    if first is None:
        return [tuple(name.split(".")) for name in names]
    for name in names:
        if name.split(".")[0] not in first and name not in first:
            _missing(name, list(first), where)
    return [(name,) if name in first else tuple(name.split(".")) for name in names]


def descend(row: Any, path: FieldPath) -> Any:
    """The value at `path`; None where there is none."""
    for key in path:
        if not isinstance(row, dict):
            return None
        row = row.get(key)
    return row


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def format_of(builder: DatasetBuilder) -> str:
    """What `datasets` calls the module that reads the files."""
    return type(builder).__module__.rpartition(".")[2]


def _missing(name: str, columns: list[str], where: str) -> None:
    import pyarrow as pa

    find_field(pa.schema([(column, pa.string()) for column in columns]), name, where)


@contextmanager
def quiet_datasets() -> Iterator[str]:
    """`datasets` without chatter; gives a temporary folder to use as its cache."""
    import datasets
    from huggingface_hub.utils import logging as hub_logging

    silent = 60
    before = datasets.utils.logging.get_verbosity(), hub_logging.get_verbosity()
    bars = datasets.utils.are_progress_bars_disabled()
    datasets.utils.logging.set_verbosity(silent)
    hub_logging.set_verbosity(silent)
    datasets.utils.disable_progress_bars()
    try:
        with tempfile.TemporaryDirectory(prefix="adaponder-datasets-") as cache:
            yield cache
    finally:
        datasets.utils.logging.set_verbosity(before[0])
        hub_logging.set_verbosity(before[1])
        if not bars:
            datasets.utils.enable_progress_bars()
