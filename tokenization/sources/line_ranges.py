"""The lines of a range of a file's plain text, so that several processes share one file."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator
from pathlib import Path

from pipeline.errors import WorldError
from tokenization.sources.compressed import is_compressed, read_blocks
from tokenization.sources.long_lines import OverlongLine, split_lines


class RawBytes:
    """The size and hash of a file, taken while its last lines are read; of no interest to who reads others."""

    def __init__(self, path: Path, whole: bool) -> None:
        """whole: the reader goes on to the file's end."""
        self._path = path
        self._whole = whole
        self._digest = hashlib.sha256()
        self.count = 0
        """Bytes of the file on disk; 0 where another slice tells."""

    def begin(self, start: int) -> None:
        """Take the bytes before `start`, which a plain file's reader passes over."""
        if not self._whole or is_compressed(self._path):
            return
        try:
            with open(self._path, "rb") as file:
                while start and (block := file.read(min(start, 1 << 20))):
                    self.add(block)
                    start -= len(block)
        except OSError as error:
            raise WorldError(f"{self._path} cannot be read: {error.strerror}") from error

    def add(self, block: bytes) -> None:
        if self._whole:
            self._digest.update(block)
            self.count += len(block)

    @property
    def sha256(self) -> str | None:
        """Of the whole file; None where another slice tells."""
        return self._digest.hexdigest() if self._whole else None


Line = bytes | bytearray | OverlongLine


def lines_from(path: Path, start: int, raw: RawBytes, longest: int) -> Generator[tuple[int, Line], None, None]:
    """The lines that begin at byte `start` of the plain text or behind it, each with the place of its first byte.

    Lines come without their line feed; one of more than `longest` bytes is passed over and comes as its length.
    """
    before = max(0, start - 1)
    raw.begin(before)
    blocks = read_blocks(path, raw.add, before)
    place = before
    if start:
        # What stands before the first line feed belongs to a line that begins before `start`.
        for block in blocks:
            found = block.find(b"\n")
            if found >= 0:
                place += found + 1
                blocks = _put_back(block[found + 1 :], blocks)
                break
            place += len(block)
    for offset, line in split_lines(blocks, longest):
        yield place + offset, line


def _put_back(first: bytes, others: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from others
