"""Documents become rows: joined by the end-of-document token and cut into rows of seq_len + 1 tokens.

Rows follow each other without overlap and without regard to where documents end; the last one is filled up with
end-of-document tokens, which are declared as padding and belong to no document. Where the work is done in parts, each
part packs whole chunks, and the tails that are left are packed together: only the last chunk of a split is short.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Pieces:
    """The parts of documents in one chunk, as columns (a list of objects would cost ten times the space)."""

    sources: list[str] = field(default_factory=list)
    """Distinct source names in the chunk."""
    source: list[int] = field(default_factory=list)
    """For each piece, where its source stands in `sources`."""
    start: list[int] = field(default_factory=list)
    """Offset of the piece's first token in the flattened chunk."""
    end: list[int] = field(default_factory=list)
    """Offset behind its last token; a document's end-of-document mark is part of it."""
    bytes: list[int] = field(default_factory=list)
    """UTF-8 bytes of the document's text, told where the document begins; 0 where it goes on from the chunk before."""

    def __len__(self) -> int:
        return len(self.start)

    def append(self, source: str, start: int, end: int, text_bytes: int) -> None:
        if source not in self.sources:
            self.sources.append(source)
        self.source.append(self.sources.index(source))
        self.start.append(start)
        self.end.append(end)
        self.bytes.append(text_bytes)


@dataclass(frozen=True)
class Tail:
    """Tokens of a part that fill no chunk."""

    tokens: np.ndarray
    """[tokens], less than a chunk's."""
    pieces: Pieces
    """The documents in them; the first may have begun in a chunk of the same part."""


@dataclass(frozen=True)
class Chunk:
    """Rows that are stored together as one WebDataset sample."""

    tokens: np.ndarray
    """[rows, seq_len + 1], uint16 or uint32."""
    pieces: Pieces
    padding_tokens: int
    """End-of-document tokens behind the last document; above 0 in a split's last chunk only."""

    def meta(self) -> dict[str, Any]:
        """What KEY.meta.json holds."""
        return {**vars(self.pieces), "padding_tokens": self.padding_tokens}


class RowPacker:
    """Packs one split; holds no more than one chunk."""

    def __init__(self, *, seq_len: int, rows_per_chunk: int, dtype: np.dtype, end_of_document_id: int) -> None:
        self._row_tokens = seq_len + 1
        self._chunk_tokens = rows_per_chunk * self._row_tokens
        self._dtype = dtype
        self._end_of_document_id = end_of_document_id
        self._begin()

    def add(self, ids: np.ndarray, source: str, text_bytes: int) -> Iterator[Chunk]:
        """Append a document of token ids `ids` [n] and its end-of-document mark; yields each chunk that became full."""
        yield from self._append(ids, source, text_bytes, marked=True)

    def add_tail(self, tail: Tail) -> Iterator[Chunk]:
        """Append what another packer of the same split had left."""
        pieces = tail.pieces
        for number in range(len(pieces)):
            tokens = tail.tokens[pieces.start[number] : pieces.end[number]]
            yield from self._append(tokens, pieces.sources[pieces.source[number]], pieces.bytes[number], marked=False)

    def tail(self) -> Tail:
        """What fills no chunk; ends this packer."""
        return Tail(self._buffer[: self._filled].copy(), self._pieces)

    def finish(self) -> Iterator[Chunk]:
        """Yield what is left, its last row filled up; nothing where the last chunk came out even."""
        if self._filled:
            padding = -self._filled % self._row_tokens
            self._buffer[self._filled : self._filled + padding] = self._end_of_document_id
            self._filled += padding
            yield self._cut(padding)

    def _append(self, ids: np.ndarray, source: str, text_bytes: int, marked: bool) -> Iterator[Chunk]:
        """marked: an end-of-document mark comes behind `ids`."""
        done, length = 0, len(ids) + marked
        while done < length:
            taken = min(length - done, self._chunk_tokens - self._filled)
            start, end = self._filled, self._filled + taken
            own = ids[done : done + taken]
            self._buffer[start : start + len(own)] = own
            self._buffer[start + len(own) : end] = self._end_of_document_id
            self._pieces.append(source, start, end, text_bytes if done == 0 else 0)
            self._filled = end
            done += taken
            if self._filled == self._chunk_tokens:
                yield self._cut(padding=0)

    def _begin(self) -> None:
        self._buffer = np.empty(self._chunk_tokens, self._dtype)
        self._pieces = Pieces()
        self._filled = 0

    def _cut(self, padding: int) -> Chunk:
        chunk = Chunk(self._buffer[: self._filled].reshape(-1, self._row_tokens), self._pieces, padding)
        self._begin()
        return chunk
