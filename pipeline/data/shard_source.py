"""Where a data set's files come from: a folder, or a URL through a cache on this machine.

Both are told apart here and nowhere else; what reads rows asks a source for a shard's index and for an open file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from pipeline.data.manifest import ShardEntry
from pipeline.errors import WorldError

OPEN_SHARDS = 256
"""Files that one reader keeps open; a process may have 1,024 by default."""


class ShardSource(Protocol):
    """The files of one data set, by the manifest's entries."""

    @property
    def most_open(self) -> int:
        """How many shards a reader may keep open at once."""
        ...

    def name(self, shard: ShardEntry) -> str:
        """What the shard is called in messages: its path or URL."""
        ...

    def require(self, shards: Sequence[ShardEntry]) -> None:
        """Find by one listing what is missing, or has another size where that is cheap; `WorldError` naming it."""
        ...

    def are_here(self, shards: Sequence[ShardEntry]) -> bool:
        """Whether all of them can be opened without fetching anything."""
        ...

    def prepare(self, shards: Sequence[ShardEntry]) -> None:
        """Bring shards to this machine, several at a time; nothing for those that are here."""
        ...

    def index(self, shard: ShardEntry) -> bytes:
        """The content of the shard's index, its hash compared with the manifest; `WorldError` naming the file."""
        ...

    def open(self, shard: ShardEntry) -> int:
        """A descriptor of the shard for reading, its size compared with the manifest; `WorldError` naming the file."""
        ...


class LocalShards:
    """Shards in a folder, on a disk of this machine or on a network file system."""

    most_open = OPEN_SHARDS

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def name(self, shard: ShardEntry) -> str:
        return str(self._folder / shard.name)

    def require(self, shards: Sequence[ShardEntry]) -> None:
        wanted = {shard.name: shard.bytes for shard in shards} | {index_name(shard.name): None for shard in shards}
        found: set[str] = set()
        # On a network file system a size is a request of its own: one rank of a machine asks for all of them, and
        # every rank for a shard's when it opens it.
        with_sizes = os.environ.get("LOCAL_RANK", "0") == "0"
        try:
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    if entry.name in wanted:
                        found.add(entry.name)
                        size = wanted[entry.name]
                        if with_sizes and size is not None:
                            require_size(entry.path, entry.stat().st_size, size)
        except OSError as error:
            raise WorldError(f"{error.filename or self._folder} cannot be read: {error.strerror}") from error
        require_names(str(self._folder), wanted, found)

    def are_here(self, shards: Sequence[ShardEntry]) -> bool:
        return True

    def prepare(self, shards: Sequence[ShardEntry]) -> None:
        """Nothing: they are here."""

    def index(self, shard: ShardEntry) -> bytes:
        path = self._folder / index_name(shard.name)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise WorldError(f"{path} cannot be read: {error.strerror}") from error
        require_index(str(path), shard, content)
        return content

    def open(self, shard: ShardEntry) -> int:
        return open_whole(self._folder / shard.name, shard)


def index_name(shard: str) -> str:
    """The name, path or URL of a shard's index."""
    return shard.removesuffix(".tar") + ".idx"


def open_whole(path: Path, shard: ShardEntry) -> int:
    """A descriptor of the shard at `path`; `WorldError` where it cannot be opened or has another size."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            require_size(str(path), os.fstat(descriptor).st_size, shard.bytes)
        except BaseException:
            os.close(descriptor)
            raise
    except OSError as error:
        raise WorldError(f"{path} cannot be read: {error.strerror}") from error
    return descriptor


def require_size(name: str, found: int, expected: int) -> None:
    """`WorldError` where a shard has not the manifest's size."""
    if found != expected:
        raise WorldError(f"{name} has {found} bytes, its manifest says {expected}: restore it")


def require_names(where: str, wanted: dict[str, int | None], found: set[str]) -> None:
    """`WorldError` naming the first of the wanted files that is not there."""
    missing = [name for name in wanted if name not in found]
    if missing:
        others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise WorldError(f"{where.rstrip('/')}/{missing[0]} is missing{others}: restore it")


def require_index(name: str, shard: ShardEntry, content: bytes) -> None:
    """`WorldError` where `content` is not the index that the manifest names."""
    if hashlib.sha256(content).hexdigest() != shard.index_sha256:
        raise WorldError(f"{name} is not the index that its manifest names: restore it")
