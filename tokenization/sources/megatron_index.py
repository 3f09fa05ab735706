"""The .idx beside a .bin of Megatron-LM and GPT-NeoX: where the documents of the .bin lie.

Layout, little-endian: magic, version (uint64), code of the tokens' type (uint8), number of sequences (uint64), length
of the document list (uint64); then for each sequence its tokens (int32), for each its first byte in the .bin (int64),
and the document list (int64): document d consists of the sequences from entry d to before entry d + 1, so that the list
has one entry more than there are documents. Newer files may end with one mode byte a sequence, of no use for text.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from pipeline.errors import UserError, WorldError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
_HEADER = struct.Struct("<9sQBQQ")
# 6 and 7 are floating point, in one order with Megatron-LM and in the other with GPT-NeoX.
TOKEN_TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
BLOCK = 1 << 18
"""Sequences or documents looked at together; bounds the memory."""

Span = tuple[int, int]
"""First token in the .bin, and how many."""


class MegatronIndex:
    """Documents of a .bin, read from the mapped .idx in blocks."""

    def __init__(self, bin_path: Path) -> None:
        """Raises `WorldError` where the .idx is damaged or does not fit the .bin, `UserError` for other contents."""
        self.path = bin_path.with_suffix(".idx")
        self._bin_path = bin_path
        size = self.path.stat().st_size
        if size < _HEADER.size:
            raise WorldError(f"{self.path} is cut short: its header alone takes {_HEADER.size} bytes")
        mapped = np.memmap(self.path, np.uint8, mode="r")
        magic, version, code, sequences, entries = _HEADER.unpack(mapped[: _HEADER.size].tobytes())
        if magic != MAGIC or version != VERSION:
            raise WorldError(f"{self.path} is not an index of Megatron's .bin files (magic {magic!r}, {version})")
        if code not in TOKEN_TYPES:
            raise UserError(f"{self.path}: its type code {code} is none of whole numbers: {bin_path} holds no tokens")
        expected = _HEADER.size + 12 * sequences + 8 * entries
        if size not in (expected, expected + sequences):
            raise WorldError(f"{self.path} has {size:,} bytes where its header says {expected:,}: fetch it again")
        self.dtype = np.dtype(TOKEN_TYPES[code])
        parts = np.split(mapped[_HEADER.size : expected], [4 * sequences, 12 * sequences])
        # The fields stand behind a header of 34 bytes, where no int64 is aligned; numpy reads them all the same.
        self._sizes, self._pointers, self._documents = (
            part.view(dtype) for part, dtype in zip(parts, ("<i4", "<i8", "<i8"), strict=True)
        )
        if entries == 0 or int(self._documents[0]) != 0 or int(self._documents[-1]) != sequences:
            raise WorldError(f"{self.path}: its list of documents does not cover its {sequences:,} sequences")
        self.tokens = 0
        for start in range(0, sequences, BLOCK):
            sizes = self._sizes[start : start + BLOCK]
            if int(sizes.min()) < 0:
                raise WorldError(f"{self.path}: a sequence has fewer than no tokens: fetch it again")
            self.tokens += int(sizes.sum(dtype=np.int64))
        bin_bytes = bin_path.stat().st_size
        if bin_bytes != self.tokens * self.dtype.itemsize:
            raise WorldError(
                f"{bin_path} has {bin_bytes:,} bytes where {self.path.name} says "
                f"{self.tokens * self.dtype.itemsize:,}: one of them is cut short, or they are no pair"
            )

    @property
    def documents(self) -> int:
        return len(self._documents) - 1

    def cuts(self, parts: int) -> list[int]:
        """Documents that begin `parts` stretches of about as many tokens each, the first being 0; fewer where
        documents are long."""
        wanted = np.arange(parts, dtype=np.int64) * self.tokens // parts
        starts: set[int] = {0}
        before = 0
        for first, bounds, _, sizes in self._blocks(0, self.documents):
            ends = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])[bounds] + before
            inside = wanted[(wanted > before) & (wanted <= ends[-1])]
            starts.update((first + np.searchsorted(ends, inside)).tolist())
            before = int(ends[-1])
        return sorted(start for start in starts if start < max(self.documents, 1))

    def spans(self, start: int, stop: int) -> Iterator[list[Span]]:
        """For each document from `start` to before `stop` where its tokens lie, neighbouring sequences joined.

        Raises `WorldError` where a sequence lies outside of the .bin.
        """
        for _, bounds, pointers, sizes in self._blocks(start, stop):
            if len(pointers):
                ends = pointers + sizes.astype(np.int64) * self.dtype.itemsize
                outside = (pointers < 0) | (ends > self.tokens * self.dtype.itemsize)
                if bool(np.any(outside | (pointers % self.dtype.itemsize != 0))):
                    raise WorldError(f"{self.path}: a sequence lies outside of {self._bin_path.name}: fetch both again")
            firsts = (pointers // self.dtype.itemsize).tolist()
            lengths = sizes.tolist()
            edges = bounds.tolist()
            for low, high in pairwise(edges):
                spans: list[Span] = []
                for first, length in zip(firsts[low:high], lengths[low:high], strict=True):
                    if spans and sum(spans[-1]) == first:
                        spans[-1] = (spans[-1][0], spans[-1][1] + length)
                    else:
                        spans.append((first, length))
                yield spans

    def _blocks(self, start: int, stop: int) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
        """(first document, bounds, pointers, sizes): document `first + i` has the sequences bounds[i] to before
        bounds[i + 1] of the block's."""
        for first in range(start, stop, BLOCK):
            entries = self._documents[first : min(stop, first + BLOCK) + 1]
            low, high = int(entries[0]), int(entries[-1])
            bounds = entries - low
            if bool(np.any(np.diff(entries) < 0)) or low < 0 or high > len(self._sizes):
                raise WorldError(f"{self.path}: its list of documents is out of order: fetch it again")
            yield first, bounds, self._pointers[low:high], self._sizes[low:high]
