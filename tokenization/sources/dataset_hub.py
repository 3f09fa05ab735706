"""Data sets of the hub, streamed through `datasets` shard by shard at one commit."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError, WorldError
from tokenization.sources.dataset_stream import descend, find_stream_fields, first_line, format_of, quiet_datasets
from tokenization.sources.table_files import FieldPath

if TYPE_CHECKING:
    from datasets import DatasetBuilder, IterableDataset

HUB_TIMEOUT_SECONDS = 30
BATCH_ROWS = 16
"""Rows held at once, whatever their size: nothing here tells it before they are read. Python gets ten at once."""


@dataclass(frozen=True)
class Shard:
    """One file, or what `datasets` counts as one, of a split."""

    number: int
    name: str
    bytes: int
    """On the hub; 0 where it is not known."""


class StreamedSplits:
    """A data set that `datasets` streams shard by shard, as a rule one of the hub.

    The order of shards and rows is a function of the commit.
    """

    def __init__(self, path: str, subset: str, commit: str | None) -> None:
        self.path = path
        self._subset = subset or None
        self._commit = commit

    def shards(self, split: str, sizes: dict[str, int]) -> list[Shard]:
        """The shards of `split`; `sizes` are those of the files. Raises `UserError` where there is no such split."""
        with self._builder() as builder:
            count = self._open(builder, split).num_shards
            urls = [str(name) for name in (builder.config.data_files or {}).get(split, [])]
        # Files of the hub are called hf://datasets/NAME@COMMIT/FILE.
        names = [url.partition("@")[2].partition("/")[2] if "@" in url else url for url in urls]
        if len(names) != count:
            total = sum(sizes.get(name, 0) for name in names)
            return [Shard(number, f"{split} shard {number}", total // count) for number in range(count)]
        return [Shard(number, name, sizes.get(name, 0)) for number, name in enumerate(names)]

    def find_fields(self, split: str, names: list[str]) -> list[FieldPath]:
        """Where the named fields stand; raises `UserError` where there is none of the name."""
        with self._builder() as builder:
            return find_stream_fields(self._open(builder, split), names, f"{self.path}, split {split}")

    def rows(self, split: str, shard: int, fields: list[FieldPath]) -> Iterator[list[Any]]:
        """The values of `fields` in each row of a shard. Raises `WorldError` where the hub fails."""
        columns = list(dict.fromkeys(path[0] for path in fields))
        with self._builder() as builder:
            if format_of(builder) == "parquet":
                # By default all columns are fetched, and whole row groups are held.
                builder.config.columns = columns  # pyright: ignore[reportAttributeAccessIssue]
                builder.config.batch_size = BATCH_ROWS  # pyright: ignore[reportAttributeAccessIssue]
            elif format_of(builder) == "csv":
                builder.config.chunksize = BATCH_ROWS  # pyright: ignore[reportAttributeAccessIssue]
            rows = self._open(builder, split)
            rows = rows.shard(rows.num_shards, shard)
            if rows.features and set(columns) < set(rows.features):
                rows = rows.select_columns(columns)
            try:
                for row in rows:
                    yield [descend(row, path) for path in fields]
            except (OSError, EOFError, ValueError, RuntimeError, zlib.error, *_network_errors()) as error:
                place = f"{self.path}, split {split}, shard {shard}"
                raise WorldError(f"{place} cannot be read: {first_line(error)}: start again to go on") from error

    @contextmanager
    def _builder(self) -> Iterator[DatasetBuilder]:
        import datasets

        with quiet_datasets() as cache, self._refusals():
            builder = datasets.load_dataset_builder(
                self.path, name=self._subset, revision=self._commit, cache_dir=cache
            )
            yield builder

    def _open(self, builder: DatasetBuilder, split: str) -> IterableDataset:
        with self._refusals():
            return builder.as_streaming_dataset(split=split)  # pyright: ignore[reportReturnType]

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except (ConnectionError, TimeoutError, EOFError, zlib.error, *_network_errors()) as error:
            if isinstance(error, FileNotFoundError):
                raise UserError(f"{self.path} cannot be read: {first_line(error)}") from error
            raise WorldError(f"{self.path} cannot be read: {first_line(error)}: start again to go on") from error
        except (ValueError, RuntimeError, ImportError) as error:
            raise UserError(f"{self.path} cannot be read: {first_line(error)}") from error


def hub_commit(path: str, revision: str) -> tuple[str, dict[str, int]]:
    """The commit that `revision` ("": the main branch) of a hub data set stands for, and the sizes of its files.

    Raises `UserError` where the hub has none of that name, `WorldError` where it does not answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = HfApi().dataset_info(path, revision=revision or None, timeout=HUB_TIMEOUT_SECONDS, files_metadata=True)
    except HFValidationError as error:
        raise UserError(f"{path} is neither a folder here nor a name the hub allows: {first_line(error)}") from error
    except RevisionNotFoundError as error:
        raise UserError(f"the hub's data set {path} has no revision {revision}") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{path} is neither a folder here nor a data set of the hub (a private one needs `hf auth login`)"
        ) from error
    except (OSError, ValueError, *_network_errors()) as error:
        raise WorldError(
            f"{path} is no folder here, and the hub does not give it ({first_line(error)}): see to the network"
        ) from error
    if not info.sha:
        raise WorldError(f"the hub does not say which commit of {path} it has")
    return info.sha, {file.rfilename: file.size or 0 for file in info.siblings or []}


def hash_of_name(commit: str, name: str) -> str:
    """SHA-256 that stands for a file of a hub commit; the commit decides what the file holds."""
    return hashlib.sha256(f"{commit} {name}".encode()).hexdigest()


def _network_errors() -> tuple[type[BaseException], ...]:
    """What the hub's client raises where the network fails: of the HTTP library that it is built on."""
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__bases__
