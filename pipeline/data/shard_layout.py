"""Where the rows of one shard lie: offsets from its index, sizes and type from its headers."""

from __future__ import annotations

import io
import os
import tokenize
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np

from pipeline.data.index import ShardIndex
from pipeline.data.manifest import ShardEntry
from pipeline.errors import WorldError

LAYOUT_BYTES = 64 << 20
"""Memory for layouts, 24 bytes a chunk: a terabyte of tokens in chunks of a megabyte takes 24 MB."""
# Longer than any header that numpy writes for a two-dimensional array.
LONGEST_HEADER_BYTES = 256


class ShardLayout:
    """Byte offsets of a shard's rows."""

    def __init__(
        self, name: str, shard: ShardEntry, index: ShardIndex, descriptor: int, row_tokens: int, room: np.ndarray
    ) -> None:
        """Read the header of the shard's first chunk; the others' are compared when one of their rows is asked for.

        `room`, int64 [3, chunks of the manifest], is what the layout is kept in. Raises `WorldError` naming the shard
        where it does not hold the chunks and rows of the manifest.
        """
        self._name = name
        self._row_tokens = row_tokens
        if not len(index.tokens_offset) or len(index.tokens_offset) != shard.chunks:
            raise self._other_rows(shard)
        self._starts, self._ends, self._checked = room
        self._starts[:] = index.tokens_offset
        self._header, self.dtype, self._first_chunk_rows = self._read_header(descriptor, 0, int(index.tokens_bytes[0]))
        """Type of the tokens, as the header says."""
        self.row_bytes = self.dtype.itemsize * row_tokens
        data_bytes = index.tokens_bytes - len(self._header)
        # From the members' sizes: reading every header here would touch every part of a large shard.
        self._ends[:] = np.cumsum(data_bytes // self.row_bytes)  # rows up to the end of each chunk
        self._checked[:] = 0
        self._checked[0] = 1
        if (
            int(self._ends[-1]) != shard.rows
            or np.any(data_bytes % self.row_bytes)
            or int((self._starts + index.tokens_bytes).max()) > shard.bytes
        ):
            raise self._other_rows(shard)

    def chunk_of(self, row: int) -> int:
        """The chunk that holds row `row` of the shard."""
        return int(np.searchsorted(self._ends, row, side="right"))

    def offsets(self, rows: np.ndarray, descriptor: int) -> np.ndarray:
        """Where rows (int64, counted from the shard's first) begin in the file open as `descriptor`: int64, bytes.

        Raises `WorldError` naming the shard where a chunk's header is not what index and manifest promise.
        """
        chunks = np.searchsorted(self._ends, rows, side="right")
        unchecked = chunks[self._checked[chunks] == 0]
        for chunk in np.unique(unchecked).tolist() if len(unchecked) else ():
            self._check(descriptor, chunk)
        first_rows = np.where(chunks > 0, self._ends[chunks - 1], 0)
        return self._starts[chunks] + len(self._header) + (rows - first_rows) * self.row_bytes

    def _check(self, descriptor: int, chunk: int) -> None:
        rows = int(self._ends[chunk] - (self._ends[chunk - 1] if chunk else 0))
        start = int(self._starts[chunk])
        if rows != self._first_chunk_rows or read_at(descriptor, start, len(self._header), self._name) != self._header:
            size = len(self._header) + rows * self.row_bytes
            header, dtype, found_rows = self._read_header(descriptor, chunk, size)
            if (len(header), dtype, found_rows) != (len(self._header), self.dtype, rows):
                raise WorldError(
                    f"{self._name} is damaged: tokens of chunk {chunk}: {dtype} [{found_rows}, {self._row_tokens}] "
                    f"instead of {self.dtype} [{rows}, {self._row_tokens}]"
                )
        self._checked[chunk] = 1

    def _read_header(self, descriptor: int, chunk: int, size: int) -> tuple[bytes, np.dtype, int]:
        """A chunk's header, literally, and what it says: type and number of rows."""
        start = int(self._starts[chunk])
        head = io.BytesIO(read_at(descriptor, start, min(size, LONGEST_HEADER_BYTES), self._name))
        try:
            if np.lib.format.read_magic(head) != (1, 0):
                raise ValueError("the .npy is of another version than 1.0")
            shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(head)
            if fortran_order or dtype.kind != "u" or len(shape) != 2 or shape[1] != self._row_tokens:
                raise ValueError(f"{dtype} {list(shape)} instead of unsigned [rows, {self._row_tokens}]")
            if head.tell() + shape[0] * shape[1] * dtype.itemsize != size:
                raise ValueError(f"{list(shape)} does not fill its {size} bytes")
        except (
            ValueError,
            TypeError,
            SyntaxError,
            tokenize.TokenError,
        ) as error:  # numpy lets its parser's own out
            raise WorldError(f"{self._name} is damaged: tokens of chunk {chunk}: {error}") from error
        return head.getvalue()[: head.tell()], dtype, shape[0]

    def _other_rows(self, shard: ShardEntry) -> WorldError:
        return WorldError(f"{self._name} does not hold the {shard.chunks} chunks and {shard.rows} rows of the manifest")


class LayoutCache:
    """The layouts of the shards used last, in one block of memory that is made at once and filled as shards are used.

    Thousands of small arrays that stay between the large ones of batches that go would leave the heap full of holes.
    """

    def __init__(self, shards: Sequence[ShardEntry]) -> None:
        chunks = max((shard.chunks for shard in shards), default=0)
        slots = min(len(shards), max(1, LAYOUT_BYTES // max(1, 3 * 8 * chunks)))
        self._rooms = np.empty((slots, 3, chunks), dtype=np.int64)
        self._free = list(range(slots))
        self._kept: OrderedDict[int, tuple[ShardLayout, int]] = OrderedDict()
        self._shards = shards

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, number: int, make: Callable[[np.ndarray], ShardLayout]) -> ShardLayout:
        """The layout of shard `number`, made by `make` in the room it is given; good until the next call."""
        if number in self._kept:
            self._kept.move_to_end(number)
            return self._kept[number][0]
        slot = self._free.pop() if self._free else self._kept.popitem(last=False)[1][1]
        try:
            layout = make(self._rooms[slot, :, : self._shards[number].chunks])
        except BaseException:
            self._free.append(slot)
            raise
        self._kept[number] = layout, slot
        return layout


def read_at(descriptor: int, offset: int, size: int, name: str) -> bytes:
    """`size` bytes of an open file; `WorldError` naming it where it gives fewer."""
    try:
        content = os.pread(descriptor, size, offset)
    except OSError as error:
        raise WorldError(f"{name} cannot be read: {error.strerror}") from error
    if len(content) != size:
        raise cut_short(name, offset + len(content))
    return content


def cut_short(name: str, end: int) -> WorldError:
    """The error for a file that ends before its index says."""
    return WorldError(f"{name} is damaged: it ends at byte {end}, in the middle of a row: restore it")
