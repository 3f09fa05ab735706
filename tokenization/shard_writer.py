"""WebDataset tars with their DALI index, the same bytes for the same chunks whoever writes them and when.

A sample is one chunk: KEY.tokens.npy and KEY.meta.json. Its index line, in the format of DALI's wds2idx ("v1.2"),
gives extension, offset, size and member name of both, so that rows are read by position without touching the rest.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np

from pipeline.data.index import INDEX_VERSION, META_EXTENSION, TOKENS_EXTENSION
from pipeline.data.manifest import ShardEntry
from pipeline.durable import sha256_file, whole_file
from tokenization.packing import Chunk


class ShardWriter:
    """Writes the shards of one split: PREFIX-000000.tar and .idx, PREFIX-000001.tar ...

    Use as a context manager. A shard takes its name when it is whole; an error inside the block leaves only those that
    were. A shard is closed before it would grow beyond `shard_bytes`, but holds one chunk at least.
    """

    def __init__(self, folder: Path, prefix: str, shard_bytes: int) -> None:
        self._folder = folder
        self._prefix = prefix
        self._shard_bytes = shard_bytes
        self._open: _OpenShard | None = None
        self.shards: list[ShardEntry] = []
        """What was written; complete once the block has ended."""

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._close_shard()
        elif self._open is not None:
            self._open.abandon(kind, error, trace)

    def write(self, chunk: Chunk) -> None:
        """Append a chunk as the next sample."""
        buffer = io.BytesIO()
        np.save(buffer, chunk.tokens, allow_pickle=False)
        tokens = buffer.getvalue()
        meta = json.dumps(chunk.meta(), separators=(",", ":"), ensure_ascii=False).encode()
        sample_bytes = sum(tarfile.BLOCKSIZE + len(data) + _padding(len(data)) for data in (tokens, meta))
        if self._open is not None and self._open.bytes_when_closed + sample_bytes > self._shard_bytes:
            self._close_shard()
        if self._open is None:
            self._open = _OpenShard(self._folder, f"{self._prefix}-{len(self.shards):06d}")
        self._open.append(tokens, meta, rows=len(chunk.tokens))

    def _close_shard(self) -> None:
        if self._open is not None:
            self.shards.append(self._open.close())
            self._open = None


class _OpenShard:
    """A tar in the making, under its partial name."""

    def __init__(self, folder: Path, stem: str) -> None:
        self._folder = folder
        self._stem = stem
        self._digest = hashlib.sha256()
        self._bytes = 0
        self._rows = 0
        self._index_lines: list[str] = []
        self._naming = ExitStack()
        self._file: IO[bytes] = self._naming.enter_context(whole_file(folder / f"{stem}.tar"))

    @property
    def bytes_when_closed(self) -> int:
        return self._bytes + 2 * tarfile.BLOCKSIZE

    def append(self, tokens: bytes, meta: bytes, rows: int) -> None:
        key = f"{self._stem}-{len(self._index_lines):06d}"
        parts = [self._member(key, TOKENS_EXTENSION, tokens), self._member(key, META_EXTENSION, meta)]
        self._index_lines.append(" ".join(parts))
        self._rows += rows

    def close(self) -> ShardEntry:
        """Give the tar its name, then write its index."""
        self._put(bytes(2 * tarfile.BLOCKSIZE))  # the end mark of a tar
        self._naming.close()
        index = self._folder / f"{self._stem}.idx"
        with whole_file(index, "w") as file:
            file.write(f"{INDEX_VERSION} {len(self._index_lines)}\n")
            file.writelines(line + "\n" for line in self._index_lines)
        return ShardEntry(
            name=f"{self._stem}.tar",
            chunks=len(self._index_lines),
            rows=self._rows,
            bytes=self._bytes,
            sha256=self._digest.hexdigest(),
            index_sha256=sha256_file(index),
        )

    def abandon(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the partial file."""
        self._naming.__exit__(kind, error, trace)

    def _member(self, key: str, extension: str, data: bytes) -> str:
        """Append one tar member; returns its part of the index line."""
        name = f"{key}.{extension}"
        header = tarfile.TarInfo(name)  # owner 0:0 without a name, mtime 0, mode 0644: nothing of this machine
        header.size = len(data)
        self._put(header.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict"))
        offset = self._bytes
        self._put(data)
        self._put(bytes(_padding(len(data))))
        return f"{extension} {offset} {len(data)} {name}"

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._bytes += len(data)


def _padding(size: int) -> int:
    return -size % tarfile.BLOCKSIZE
