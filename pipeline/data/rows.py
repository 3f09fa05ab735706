"""Rows by position: any row of a split without touching the rest of it.

Tars are mapped into memory and a chunk's tokens are seen in place, so a row costs one small copy and the pages it lies
on. What is kept a chunk is its place in the index.
"""

from __future__ import annotations

import hashlib
import io
import mmap
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import torch

from pipeline.data.index import ShardIndex, read_index
from pipeline.data.manifest import Manifest, ShardEntry
from pipeline.errors import WorldError

IGNORED_LABEL = -100
"""Cross entropy's ignore_index; stands where a label is padding."""
# Every mapping holds a file descriptor, of which a process has 1,024 by default.
OPEN_SHARDS = 256
# Longer than any header that numpy writes for a two-dimensional array.
LONGEST_HEADER_BYTES = 256


@dataclass(frozen=True)
class _Layout:
    """How a chunk's .npy lies in the tar: its header, literally, and what the header says."""

    header: bytes
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * self.shape[1]


class RowReader:
    """Reads the rows of one split ("train", "validation-SOURCE"). For one thread at a time."""

    def __init__(self, shards: Path, manifest: Manifest, split_key: str) -> None:
        """Open the split's indices and compare sizes with the manifest; shards' hashes are not computed here.

        Raises `WorldError` naming the file for a shard or index that is missing, has another size or content than the
        manifest says, or does not hold the rows that it should.
        """
        split = manifest.splits[split_key]
        self.rows = split.rows
        """Number of rows, the last one perhaps partly padding."""
        self.padding_tokens = split.padding_tokens
        """Tokens at the end of the last row that belong to no document."""
        self.row_tokens = manifest.seq_len + 1
        """Tokens a row stores."""
        self._paths = [shards / shard.name for shard in split.shards]
        self._maps: OrderedDict[int, mmap.mmap] = OrderedDict()
        self._indices = [_open_index(path, shard) for path, shard in zip(self._paths, split.shards, strict=True)]
        # The header of a shard's first chunk; all others but the split's last have the same.
        self._layouts = [self._read_layout(shard, 0) for shard in range(len(self._paths))]
        chunk_rows = [self._chunk_rows(number, shard) for number, shard in enumerate(split.shards)]
        self._chunk_ends = np.cumsum(np.concatenate(chunk_rows)) if chunk_rows else np.zeros(0, np.int64)
        self._shard_first_chunk = np.cumsum([0, *(len(counts) for counts in chunk_rows)])

    def __enter__(self) -> RowReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the mapped files back."""
        while self._maps:
            self._maps.popitem()[1].close()

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The rows at `indices` (each in [0, rows), in any order, repeats allowed): int64 [n, seq_len + 1].

        Raises `WorldError` naming the shard where a chunk is not what the index and the manifest promise.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.size and not (int(wanted.min()) >= 0 and int(wanted.max()) < self.rows):
            raise IndexError(f"row numbers must lie in [0, {self.rows})")
        chunks = np.searchsorted(self._chunk_ends, wanted, side="right")
        rows = np.empty((len(wanted), self.row_tokens), dtype=np.int64)
        for place, (row, chunk) in enumerate(zip(wanted.tolist(), chunks.tolist(), strict=True)):
            first_row = int(self._chunk_ends[chunk - 1]) if chunk else 0
            rows[place] = self._chunk_tokens(chunk)[row - first_row]
        return rows

    def batch(self, indices: Sequence[int] | np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and labels of the rows at `indices`, both int64 [n, seq_len].

        The labels are shifted already: shift_labels[:, t] is the token after inputs[:, t], or IGNORED_LABEL where that
        token is padding. A last row with a single real token has no label at all.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        rows = torch.from_numpy(self.read(wanted))
        inputs, shift_labels = rows[:, :-1].contiguous(), rows[:, 1:].clone()
        if self.padding_tokens:
            last = torch.from_numpy(wanted == self.rows - 1)
            shift_labels[last, -self.padding_tokens :] = IGNORED_LABEL
        return inputs, shift_labels

    def _chunk_tokens(self, chunk: int) -> np.ndarray:
        """A chunk's tokens [rows, seq_len + 1] in place, read-only."""
        shard = int(np.searchsorted(self._shard_first_chunk, chunk, side="right")) - 1
        number = chunk - int(self._shard_first_chunk[shard])
        layout = self._layouts[shard]
        offset = int(self._indices[shard].tokens_offset[number])
        mapped = self._map(shard)
        if mapped[offset : offset + len(layout.header)] != layout.header:
            layout = self._read_layout(shard, number)
        expected_rows = int(self._chunk_ends[chunk] - (self._chunk_ends[chunk - 1] if chunk else 0))
        if layout.shape[0] != expected_rows:
            raise WorldError(
                f"{self._paths[shard]} is damaged: chunk {number} has {layout.shape[0]} rows instead of {expected_rows}"
            )
        data = offset + len(layout.header)
        return np.frombuffer(mapped, layout.dtype, layout.shape[0] * layout.shape[1], data).reshape(layout.shape)

    def _map(self, shard: int) -> mmap.mmap:
        mapped = self._maps.get(shard)
        if mapped is None:
            try:
                with open(self._paths[shard], "rb") as file:
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except OSError as error:
                raise WorldError(f"{self._paths[shard]} cannot be read: {error.strerror}") from error
            self._maps[shard] = mapped
            if len(self._maps) > OPEN_SHARDS:
                self._maps.popitem(last=False)  # closes itself once no view is left
        else:
            self._maps.move_to_end(shard)
        return mapped

    def _read_layout(self, shard: int, number: int) -> _Layout:
        """The header of a chunk's .npy, honoured as it stands."""
        index = self._indices[shard]
        offset, size = int(index.tokens_offset[number]), int(index.tokens_bytes[number])
        head = io.BytesIO(self._map(shard)[offset : offset + min(size, LONGEST_HEADER_BYTES)])
        try:
            if np.lib.format.read_magic(head) != (1, 0):
                raise ValueError("the .npy is of another version than 1.0")
            shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(head)
            layout = _Layout(head.getvalue()[: head.tell()], dtype, shape)
            if fortran_order or dtype.kind != "u" or len(shape) != 2 or shape[1] != self.row_tokens:
                raise ValueError(f"{dtype} {list(shape)} instead of unsigned [rows, {self.row_tokens}]")
            if len(layout.header) + shape[0] * layout.row_bytes != size:
                raise ValueError(f"{list(shape)} does not fill its {size} bytes")
        except ValueError as error:
            raise WorldError(f"{self._paths[shard]} is damaged: tokens of chunk {number}: {error}") from error
        return layout

    def _chunk_rows(self, number: int, shard: ShardEntry) -> np.ndarray:
        """Rows of each chunk of a shard, int64 [chunks], from the members' sizes.

        Reading every header at opening would touch every page of a large data set; each is checked when it is read.
        """
        layout = self._layouts[number]
        data_bytes = self._indices[number].tokens_bytes - len(layout.header)
        rows = data_bytes // layout.row_bytes
        if len(rows) != shard.chunks or int(rows.sum()) != shard.rows or np.any(data_bytes % layout.row_bytes):
            raise WorldError(
                f"{self._paths[number]} does not hold the {shard.chunks} chunks and {shard.rows} rows of the manifest"
            )
        return rows


def _open_index(path: Path, shard: ShardEntry) -> ShardIndex:
    """The index of the shard at `path`, both compared with the manifest's entry."""
    index_path = path.with_suffix(".idx")
    try:
        found_bytes = path.stat().st_size
        content = index_path.read_bytes()
    except OSError as error:
        raise WorldError(f"{error.filename} cannot be read: {error.strerror}") from error
    if found_bytes != shard.bytes:
        raise WorldError(f"{path} has {found_bytes} bytes, its manifest says {shard.bytes}: restore it")
    if hashlib.sha256(content).hexdigest() != shard.index_sha256:
        raise WorldError(f"{index_path} is not the index that its manifest names: restore it")
    return read_index(index_path, content)
