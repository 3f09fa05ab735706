"""Chunks as they lie in finished shards, for those who look into shards instead of training on them.

`verify_shard`, `show` and `peek` need what the loading of rows never touches: the documents in a chunk.
What they share is here: a chunk's header and its pieces, read with every field checked, and a shard opened by its
index.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import tokenize
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data.index import ShardIndex, read_index
from pipeline.data.manifest import ShardEntry
from pipeline.errors import WorldError
from tokenization.encoding.tokenizer import TOKENIZER_FILE
from tokenization.finished_shards import TOKENIZER_FOLDER

TOKENIZER_PATH = Path(TOKENIZER_FOLDER) / TOKENIZER_FILE
"""Where the tokenizer lies in a folder of shards."""
# Longer than any header that numpy writes for a two-dimensional array.
LONGEST_HEADER_BYTES = 256


@dataclass(frozen=True)
class ChunkHeader:
    """What the .npy of a chunk says of itself."""

    bytes: int
    """Length of the header; the tokens begin behind it."""
    dtype: np.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class StoredPieces:
    """The parts of documents in one chunk; columns are int64 [pieces]. See `tokenization.packing.Pieces`."""

    sources: list[str]
    source: np.ndarray
    start: np.ndarray
    end: np.ndarray
    bytes: np.ndarray
    padding_tokens: int


def read_header(head: bytes) -> ChunkHeader:
    """Parse the first bytes of a .npy; `ValueError` with the reason where they are none of an unsigned matrix."""
    length = len(np.lib.format.magic(1, 0)) + 2 + int.from_bytes(head[8:10], "little")
    return _parse_header(bytes(head[: min(length, LONGEST_HEADER_BYTES)]))


@functools.lru_cache(maxsize=64)  # nearly all chunks of a data set have the same
def _parse_header(head: bytes) -> ChunkHeader:
    file = io.BytesIO(head)
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("the .npy is of another version than 1.0")
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    except (SyntaxError, TypeError, tokenize.TokenError) as error:  # what a header of random bytes may end in
        raise ValueError(f"the .npy header cannot be parsed: {error}") from error
    if fortran_order or dtype.kind != "u" or len(shape) != 2 or min(shape) < 1:
        raise ValueError(f"the .npy holds {dtype} {list(shape)} instead of unsigned [rows, seq_len + 1]")
    return ChunkHeader(file.tell(), dtype, shape)


def read_pieces(content: bytes, chunk_tokens: int) -> StoredPieces:
    """Parse a KEY.meta.json of a chunk of `chunk_tokens` tokens, padding included.

    Raises `ValueError` with the reason where a field is missing or of another type, or where the pieces do not lie end
    to end from the chunk's first token to its padding.
    """
    meta = json.loads(content.decode("utf-8"))
    if not isinstance(meta, dict):
        raise ValueError("meta.json holds no object")
    sources = meta.get("sources")
    if not (isinstance(sources, list) and sources and all(isinstance(name, str) for name in sources)):
        raise ValueError("sources is no list of names")
    if len(set(sources)) < len(sources):
        raise ValueError("sources names one twice")
    source, start, end, text_bytes = (_column(meta, name) for name in ("source", "start", "end", "bytes"))
    padding = meta.get("padding_tokens")
    if not isinstance(padding, int) or isinstance(padding, bool) or padding < 0:
        raise ValueError(f"padding_tokens is {padding!r}")
    if not len(source) == len(start) == len(end) == len(text_bytes) > 0:
        raise ValueError("source, start, end and bytes are not equally long, or empty")
    if source.min() < 0 or source.max() >= len(sources):
        raise ValueError(f"source points outside the {len(sources)} sources")
    if text_bytes.min() < 0:
        raise ValueError("bytes are below 0")
    gaps = np.flatnonzero(start[1:] != end[:-1])
    if gaps.size:
        raise ValueError(
            f"piece {gaps[0] + 1} begins at token {start[gaps[0] + 1]}, the one before ends at {end[gaps[0]]}"
        )
    if start[0] != 0 or end[-1] != chunk_tokens - padding:
        raise ValueError(
            f"pieces reach from token {start[0]} to {end[-1]} instead of 0 to {chunk_tokens - padding} "
            f"({chunk_tokens} tokens, {padding} of them padding)"
        )
    empty = np.flatnonzero(end <= start)
    if empty.size:
        raise ValueError(f"piece {empty[0]} holds no token")
    return StoredPieces(sources, source, start, end, text_bytes, padding)


def _column(meta: dict, name: str) -> np.ndarray:
    values = meta.get(name)
    if not isinstance(values, list) or not {*map(type, values)} <= {int}:
        raise ValueError(f"{name} is no list of whole numbers")
    try:
        return np.array(values, dtype=np.int64)
    except OverflowError as error:
        raise ValueError(f"{name} holds a number beyond 64 bits") from error


class StoredShard:
    """One shard opened by its index, to look at single chunks. Use as a context manager; threads may share it."""

    def __init__(self, shards: Path, entry: ShardEntry, row_tokens: int) -> None:
        """Raises `WorldError` naming the file for a shard or index that is missing or not the manifest's."""
        self._path = shards / entry.name
        index_path = self._path.with_suffix(".idx")
        try:
            content = index_path.read_bytes()
            found_bytes = self._path.stat().st_size
            descriptor = os.open(self._path, os.O_RDONLY)
        except OSError as error:
            raise WorldError(f"{error.filename} cannot be read: {error.strerror}") from error
        self._descriptor = descriptor
        try:
            if found_bytes != entry.bytes:
                raise WorldError(f"{self._path} has {found_bytes} bytes, its manifest says {entry.bytes}: restore it")
            if hashlib.sha256(content).hexdigest() != entry.index_sha256:
                raise WorldError(f"{index_path} is not the index that its manifest names: restore it")
            self._index: ShardIndex = read_index(index_path, content)
            # Sample keys are SERIES-SHARD-CHUNK.
            self.series = content.decode().split(" ", 5)[4].split(".", 1)[0].rsplit("-", 2)[0] if self.chunks else ""
            """What the shards written by one writer, one after the other, have in common."""
        except BaseException:
            self.close()
            raise
        self._row_tokens = row_tokens

    def __enter__(self) -> StoredShard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._descriptor)

    @property
    def chunks(self) -> int:
        return len(self._index.tokens_offset)

    def header(self, chunk: int) -> ChunkHeader:
        """The header of a chunk's tokens."""
        offset, size = int(self._index.tokens_offset[chunk]), int(self._index.tokens_bytes[chunk])
        try:
            header = read_header(self._read(offset, min(size, LONGEST_HEADER_BYTES)))
            rows, columns = header.shape
            if columns != self._row_tokens or header.bytes + rows * columns * header.dtype.itemsize != size:
                raise ValueError(
                    f"{list(header.shape)} does not fill {size} bytes with rows of {self._row_tokens} tokens"
                )
        except ValueError as error:
            raise self._damaged(chunk, error) from error
        return header

    def tokens(self, chunk: int) -> np.ndarray:
        """All tokens of a chunk, [rows, seq_len + 1], in the dtype that they are stored in."""
        header = self.header(chunk)
        offset, size = int(self._index.tokens_offset[chunk]), int(self._index.tokens_bytes[chunk])
        return np.frombuffer(self._read(offset + header.bytes, size - header.bytes), header.dtype).reshape(header.shape)

    def last_token(self, chunk: int) -> int:
        """The chunk's last token: where there is no padding, it tells whether a document ends with the chunk."""
        width = self.header(chunk).dtype
        end = int(self._index.tokens_offset[chunk] + self._index.tokens_bytes[chunk])
        return int(np.frombuffer(self._read(end - width.itemsize, width.itemsize), width)[0])

    def pieces(self, chunk: int) -> StoredPieces:
        """The parts of documents in a chunk."""
        rows, columns = self.header(chunk).shape
        content = self._read(int(self._index.meta_offset[chunk]), int(self._index.meta_bytes[chunk]))
        try:
            return read_pieces(content, rows * columns)
        except ValueError as error:
            raise self._damaged(chunk, error) from error

    def _read(self, offset: int, size: int) -> bytes:
        try:
            data = os.pread(self._descriptor, size, offset)
        except OSError as error:
            raise WorldError(f"{self._path} cannot be read: {error.strerror}") from error
        if len(data) != size:
            raise WorldError(f"{self._path} is cut: {len(data)} of {size} bytes at {offset}")
        return data

    def _damaged(self, chunk: int, reason: ValueError) -> WorldError:
        return WorldError(f"{self._path} is damaged: chunk {chunk}: {reason}; `adaponder data verify` tells more")
