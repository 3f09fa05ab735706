"""Rows by position: any row of a split without touching the rest of it.

At the start only the manifest and one listing are looked at; a shard's index and headers are read when its first row is
asked for. Rows are read with pread into one array a batch and converted from there into the int64 batch: about as fast
as from mapped memory, and a file that is cut short or cannot be read is an error with its name here, where mapped
memory would end the process by a signal without a word. The kernel is told of all rows of a batch before the first is
read, so that they come from disk or network together and not one after the other.
"""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import torch

from pipeline.data.index import read_index
from pipeline.data.manifest import Manifest
from pipeline.data.shard_layout import LayoutCache, ShardLayout, cut_short
from pipeline.data.shard_source import LocalShards, ShardSource, index_name
from pipeline.errors import WorldError

IGNORED_LABEL = -100
"""Cross entropy's ignore_index; stands where a label is padding."""


class RowReader:
    """Reads the rows of one split ("train", "validation-SOURCE"). For one thread at a time."""

    def __init__(self, shards: Path | ShardSource, manifest: Manifest, split_key: str) -> None:
        """List the shards, a folder or another source, and compare names and sizes with the manifest.

        Raises `WorldError` naming the first file that is missing or has another size.
        """
        split = manifest.splits[split_key]
        self.rows = split.rows
        """Number of rows, the last one perhaps partly padding."""
        self.padding_tokens = split.padding_tokens
        """Tokens at the end of the last row that belong to no document."""
        self.row_tokens = manifest.seq_len + 1
        """Tokens a row stores."""
        self.chunk_rows = -(-split.shards[0].rows // split.shards[0].chunks) if split.shards else 1
        """Rows a chunk, by the manifest: exact where all chunks but the split's last are equal and there are several
        shards; it decides what `shuffle: chunks` keeps together, and nothing else."""
        self._vocab_size = manifest.tokenizer.vocab_size
        self._source: ShardSource = LocalShards(shards) if isinstance(shards, Path) else shards
        self._shards = split.shards
        self._shard_ends = np.cumsum([shard.rows for shard in split.shards], dtype=np.int64)
        self._layouts = LayoutCache(split.shards)
        self._files: OrderedDict[int, int] = OrderedDict()
        self._source.require(split.shards)

    def __enter__(self) -> RowReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; reading opens them again."""
        while self._files:
            os.close(self._files.popitem()[1])

    def is_here(self, indices: Sequence[int] | np.ndarray) -> bool:
        """Whether the rows at `indices` can be read without fetching a shard from a store first."""
        numbers = np.unique(np.searchsorted(self._shard_ends, np.asarray(indices, dtype=np.int64), side="right"))
        return self._source.are_here([self._shards[number] for number in numbers.tolist() if number not in self._files])

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The rows at `indices` (each in [0, rows), in any order, repeats allowed): int64 [n, seq_len + 1].

        Raises `WorldError` naming the shard where a chunk is not what the index and the manifest promise.
        """
        return self._stored(np.asarray(indices, dtype=np.int64)).astype(np.int64)

    def batch(self, indices: Sequence[int] | np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and labels of the rows at `indices`, both int64 [n, seq_len].

        The labels are shifted already: shift_labels[:, t] is the token after inputs[:, t], or IGNORED_LABEL where that
        token is padding. A last row with a single real token has no label at all. Errors as in `read`.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        stored = self._stored(wanted)
        inputs = torch.empty((len(wanted), self.row_tokens - 1), dtype=torch.int64)
        shift_labels = torch.empty_like(inputs)
        inputs.numpy()[...] = stored[:, :-1]
        shift_labels.numpy()[...] = stored[:, 1:]
        if self.padding_tokens:
            shift_labels[torch.from_numpy(wanted == self.rows - 1), -self.padding_tokens :] = IGNORED_LABEL
        return inputs, shift_labels

    def _stored(self, wanted: np.ndarray) -> np.ndarray:
        """The rows as they are stored, unsigned integers [n, seq_len + 1]."""
        if wanted.size and not (int(wanted.min()) >= 0 and int(wanted.max()) < self.rows):
            raise IndexError(f"row numbers must lie in [0, {self.rows})")
        shards = np.searchsorted(self._shard_ends, wanted, side="right")
        numbers = np.unique(shards).tolist()
        self._source.prepare([self._shards[number] for number in numbers if number not in self._files])
        offsets = np.empty(len(wanted), dtype=np.int64)
        types: dict[int, np.dtype] = {}
        for number in numbers:
            layout = self._layout(number)
            places = np.flatnonzero(shards == number)
            first_row = int(self._shard_ends[number]) - self._shards[number].rows
            offsets[places] = layout.offsets(wanted[places] - first_row, self._file(number))
            types[number] = layout.dtype
        distinct = set(types.values())
        stored = np.empty((len(wanted), self.row_tokens), distinct.pop() if len(distinct) == 1 else np.dtype(np.uint64))
        runs = list(_runs(shards, offsets, {number: self._row_bytes(dtype) for number, dtype in types.items()}))
        if len(numbers) <= self._source.most_open:
            for number, _, count, offset in runs:
                self._announce(number, offset, count * self._row_bytes(types[number]))
        view = stored.reshape(-1).view(np.uint8).data
        for number, place, count, offset in runs:
            row_bytes = self._row_bytes(types[number])
            if types[number] == stored.dtype:
                self._fill(number, offset, view[place * row_bytes : (place + count) * row_bytes])
            else:
                found = np.empty((count, self.row_tokens), types[number])
                self._fill(number, offset, found.reshape(-1).view(np.uint8).data)
                stored[place : place + count] = found
        if stored.size and int(stored.max()) >= self._vocab_size:
            raise self._beyond_vocabulary(wanted, shards, stored)
        return stored

    def _row_bytes(self, dtype: np.dtype) -> int:
        return dtype.itemsize * self.row_tokens

    def _announce(self, number: int, offset: int, size: int) -> None:
        """Let the kernel fetch what will be read in a moment; a file system may decline."""
        with contextlib.suppress(OSError):
            os.posix_fadvise(self._file(number), offset, size, os.POSIX_FADV_WILLNEED)

    def _fill(self, number: int, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from a shard."""
        try:
            done = os.preadv(self._file(number), [buffer], offset)
            while done < len(buffer):  # a network file system may give less at once than was asked for
                more = os.preadv(self._file(number), [buffer[done:]], offset + done)
                if not more:
                    raise cut_short(self._name(number), offset + done)
                done += more
        except OSError as error:
            raise WorldError(f"{self._name(number)} cannot be read: {error.strerror}") from error

    def _layout(self, number: int) -> ShardLayout:
        def make(room: np.ndarray) -> ShardLayout:
            shard, name = self._shards[number], self._name(number)
            index = read_index(index_name(name), self._source.index(shard))
            return ShardLayout(name, shard, index, self._file(number), self.row_tokens, room)

        return self._layouts.get(number, make)

    def _file(self, number: int) -> int:
        descriptor = self._files.get(number)
        if descriptor is None:
            descriptor = self._source.open(self._shards[number])
            self._files[number] = descriptor
            if len(self._files) > self._source.most_open:
                os.close(self._files.popitem(last=False)[1])
        else:
            self._files.move_to_end(number)
        return descriptor

    def _name(self, number: int) -> str:
        return self._source.name(self._shards[number])

    def _beyond_vocabulary(self, wanted: np.ndarray, shards: np.ndarray, stored: np.ndarray) -> WorldError:
        place = int(stored.max(axis=1).argmax())
        number = int(shards[place])
        row = int(wanted[place] - self._shard_ends[number] + self._shards[number].rows)
        return WorldError(
            f"{self._name(number)} is damaged: chunk {self._layout(number).chunk_of(row)} holds token "
            f"{int(stored[place].max())}, the vocabulary ends before {self._vocab_size}: restore it"
        )


def _runs(shards: np.ndarray, offsets: np.ndarray, row_bytes: dict[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Shard, first place in the batch, number of rows and offset of what one read gives, shard by shard.

    row_bytes: by shard, in ascending order.
    """
    order = np.argsort(shards, kind="stable")
    in_order, starts = shards[order], offsets[order]
    strides = np.fromiter(row_bytes.values(), np.int64)[np.searchsorted(list(row_bytes), in_order)]
    follows = (np.diff(in_order) == 0) & (np.diff(order) == 1) & (np.diff(starts) == strides[1:])
    first = np.flatnonzero(np.concatenate([[True], ~follows])) if len(order) else np.zeros(0, np.int64)
    counts = np.diff(np.append(first, len(order)))
    yield from zip(
        in_order[first].tolist(), order[first].tolist(), counts.tolist(), starts[first].tolist(), strict=True
    )
