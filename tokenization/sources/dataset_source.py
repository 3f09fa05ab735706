"""Documents from Parquet, Arrow, JSON and CSV files, and from data sets of the hub."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.durable import sha256_file
from pipeline.errors import UserError, WorldError
from pipeline.recipe_tokenize import DatasetSource
from tokenization.documents import (
    Document,
    Item,
    Reason,
    Rejection,
    Slice,
    SliceEnd,
    SourceReader,
    Split,
    falls_into_validation,
    printable,
    utf8_bytes,
)
from tokenization.sources.dataset_hub import Shard, StreamedSplits, hash_of_name, hub_commit
from tokenization.sources.dataset_stream import FILE_FORMATS, StreamFile, folder_files
from tokenization.sources.find_files import check_unchanged, file_identity, find_files
from tokenization.sources.long_lines import LONGEST_LINE_BYTES
from tokenization.sources.table_files import (
    ArrowTable,
    FieldPath,
    ParquetTable,
    TableFile,
    field_of,
    find_field,
    stretches,
    texts_of,
)
from tokenization.sources.utf8_text import LONG_TEXT_BYTES, Utf8Text

SUFFIXES = {
    "parquet": (".parquet",),
    "arrow": (".arrow",),
    # Of compressed files only .gz: a .zst that is cut short ends without an error in `datasets`.
    "json": (".json", ".jsonl", ".json.gz", ".jsonl.gz"),
    "csv": (".csv", ".tsv", ".csv.gz", ".tsv.gz"),
}
# About what gzip makes of text; for the balance of the parts alone.
GZIP_RATIO = 3


def open_dataset(source: DatasetSource, seed: int) -> SourceReader:
    """The reader of a data set: of its files where they are here, of the hub's shards where they are not.

    Raises `UserError` where files, folder, data set, split or column are not there, `WorldError` where a file is
    damaged or the hub does not answer.
    """
    train, validation = source.files, source.validation_files
    if source.path in FILE_FORMATS:
        suffixes = SUFFIXES[source.path]
        return DatasetFilesReader(
            source, seed, source.path, find_files(train, suffixes), find_files(validation, suffixes)
        )
    folder = Path(source.path).expanduser()
    if folder.is_dir():
        file_format, by_split = folder_files(folder.absolute(), source.subset)
        wanted = [split for split in (source.train_split, source.validation_split) if split]
        for split in wanted:
            if split not in by_split:
                raise UserError(f"{folder} has no split {split}: it has {', '.join(by_split)}")
        found = [
            find_files([str(path) for path in by_split[split]], SUFFIXES[file_format]) if split else []
            for split in (source.train_split, source.validation_split)
        ]
        return DatasetFilesReader(source, seed, file_format, *found)
    if source.path.startswith(("/", ".", "~")) or source.path.count("/") > 1:
        raise UserError(f"{source.path}: no such folder")
    commit, sizes = hub_commit(source.path, source.revision)
    return StreamedDatasetReader(source, seed, commit, sizes)


class DatasetFilesReader:
    """Reads the training files in sorted order, then the given validation files.

    Parquet and Arrow files are cut into ranges of rows; a JSON or CSV file is one slice.
    """

    def __init__(
        self, source: DatasetSource, seed: int, file_format: str, train: list[Path], validation: list[Path]
    ) -> None:
        """Raises `UserError` where a file has no such column, `WorldError` where one is damaged.

        Of the columns of JSON and CSV files, the first of each split is asked; of the others, every file.
        """
        self.name = source.name
        self._rows = _RowsToDocuments(source, seed)
        self._format = file_format
        self.train_files = train
        self.validation_files = validation
        self._places: dict[tuple[Split, str], tuple[int, Path]] = {}
        for split, files in self._splits():
            for number, path in enumerate(files):
                if self._places.setdefault((split, printable(str(path))), (number, path)) != (number, path):
                    raise UserError(f"{printable(str(path))}: two files share this name: rename one")
                if number == 0 or file_format in ("parquet", "arrow"):
                    self._fields(path)

    @property
    def text_bytes(self) -> int:
        return sum(piece.size for piece in self.slices(1 << 62))

    def slices(self, part_bytes: int) -> list[Slice]:
        slices: list[Slice] = []
        for split, files in self._splits():
            for path in files:
                identity = file_identity(path)
                if self._format in ("parquet", "arrow"):
                    cut = stretches(self._table(path).groups(self._fields(path)[0]), part_bytes)
                else:
                    cut = [(0, 0, path.stat().st_size * (GZIP_RATIO if path.suffix == ".gz" else 1))]
                for number, (start, end, size) in enumerate(cut, start=1):
                    last = number == len(cut)
                    slices.append(Slice(printable(str(path)), start, None if last else end, size, identity, split))
        return slices

    def read(self, piece: Slice, advance: Callable[[int], object]) -> Iterator[Item]:
        file_number, path = self._places[piece.split, piece.input]
        check_unchanged(piece.identity, path)
        values = self._values(path, piece.start, piece.end)
        records = yield from self._rows.items(values, piece, piece.start, file_number, advance)
        if piece.end is not None:
            yield SliceEnd(records, 0, None)
            return
        digest = sha256_file(path)
        # Whatever was written into the file meanwhile may be in the documents and not in the hash, or the reverse.
        check_unchanged(piece.identity, path)
        yield SliceEnd(records, path.stat().st_size, digest)

    def _values(self, path: Path, start: int, end: int | None) -> Iterator[list[Any]]:
        """Text and source name of each row, as they are stored."""
        try:
            fields = self._fields(path)
        except UserError as error:
            # The first file of the split had the columns.
            raise WorldError(str(error)) from error
        if self._format not in ("parquet", "arrow"):
            yield from StreamFile(path, self._format).rows(fields)
            return
        for batch in self._table(path).batches(start, end, fields):
            columns = [texts_of(field_of(batch, field)) for field in fields]
            yield from map(list, zip(*columns, strict=True))

    def _fields(self, path: Path) -> list[FieldPath]:
        if self._format in ("parquet", "arrow"):
            schema: pa.Schema = self._table(path).schema
            return [find_field(schema, name, str(path)) for name in self._rows.names]
        return StreamFile(path, self._format).find_fields(self._rows.names)

    def _table(self, path: Path) -> TableFile:
        return ParquetTable(path) if self._format == "parquet" else ArrowTable(path)

    def _splits(self) -> list[tuple[Split, list[Path]]]:
        return [("train", self.train_files), ("validation", self.validation_files)]


class StreamedDatasetReader:
    """Reads the shards (as a rule the files) of a data set of the hub, one a slice, training first.

    A slice's identity is the commit that was found when the work was planned, and that commit is read, whatever the
    main branch is by then.
    """

    train_files: tuple[Path, ...] = ()
    validation_files: tuple[Path, ...] = ()

    def __init__(self, source: DatasetSource, seed: int, commit: str | None, sizes: dict[str, int]) -> None:
        """`commit` None: a folder here. `sizes`: of the files, in bytes.

        Raises `UserError` where there is no such split or column, `WorldError` where the hub does not answer.
        """
        self.name = source.name
        self._source = source
        self._commit = commit
        self._rows = _RowsToDocuments(source, seed)
        rows = StreamedSplits(source.path, source.subset, commit)
        self._shards: dict[Split, list[Shard]] = {}
        for split, name in self._splits():
            rows.find_fields(name, self._rows.names)
            self._shards[split] = rows.shards(name, sizes)

    @property
    def text_bytes(self) -> int:
        return sum(shard.bytes for shards in self._shards.values() for shard in shards)

    def slices(self, part_bytes: int) -> list[Slice]:
        return [
            Slice(
                f"{self._source.path}: {shard.name}",
                shard.number,
                shard.number + 1,
                shard.bytes,
                str(self._commit),
                split,
            )
            for split, shards in self._shards.items()
            for shard in shards
        ]

    def read(self, piece: Slice, advance: Callable[[int], object]) -> Iterator[Item]:
        commit = None if self._commit is None else piece.identity
        stream = StreamedSplits(self._source.path, self._source.subset, commit)
        name = dict(self._splits())[piece.split]
        values = stream.rows(name, piece.start, stream.find_fields(name, self._rows.names))
        records = yield from self._rows.items(values, piece, 0, piece.start, advance)
        yield SliceEnd(records, 0, hash_of_name(piece.identity, f"{name} {piece.input}"))

    def _splits(self) -> list[tuple[Split, str]]:
        splits: list[tuple[Split, str]] = [("train", self._source.train_split)]
        if self._source.validation_split:
            splits.append(("validation", self._source.validation_split))
        return splits


class _RowsToDocuments:
    """What becomes of a row, whichever file it comes from."""

    def __init__(self, source: DatasetSource, seed: int) -> None:
        self._source = source
        self._seed = seed
        self.names = [name for name in (source.text_field, source.source_field) if name]
        """The columns that a row's values stand for: the text, and the source name where there is one."""

    def items(
        self,
        rows: Iterator[list[Any]],
        piece: Slice,
        first_row: int,
        file_number: int,
        advance: Callable[[int], object],
    ) -> Generator[Document | Rejection, None, int]:
        """The documents and refusals of a slice; returns how many rows it had."""
        records = 0
        for records, values in enumerate(rows, start=1):
            item = self._item(values, piece, records, f"{file_number}:{first_row + records - 1}")
            if isinstance(item, Document):
                advance(item.text_bytes)
            yield item
        return records

    def _item(self, values: list[Any], piece: Slice, record: int, number: str) -> Document | Rejection:
        def reject(reason: Reason, detail: str) -> Rejection:
            return Rejection(piece.input, record, reason, detail)

        text, *named = values
        if text is None:
            return reject("missing_text", f"no text in {self._source.text_field}")
        if not isinstance(text, str | bytes):
            return reject("text_not_a_string", f"{self._source.text_field} is of type {type(text).__name__}")
        try:
            text_bytes = len(text) if isinstance(text, bytes) else utf8_bytes(text)
            if text_bytes > LONGEST_LINE_BYTES:
                return reject("line_too_long", f"{text_bytes} bytes of text, more than {LONGEST_LINE_BYTES}")
            if text_bytes > LONG_TEXT_BYTES:
                text = Utf8Text(text if isinstance(text, bytes) else text.encode("utf-8"))
            elif isinstance(text, bytes):
                text = text.decode("utf-8")
            named = [value.decode("utf-8") if isinstance(value, bytes) else value for value in named]
            name = named[0] if named and isinstance(named[0], str) and named[0].strip() else self._source.name
            name.encode("utf-8")
        except UnicodeError as error:
            return reject("not_utf8", str(error))
        split = piece.split
        if split == "train" and falls_into_validation(self._seed, name, number, self._source.validation_share):
            split = "validation"
        return Document(text, text_bytes, name, split, piece.input, record)
