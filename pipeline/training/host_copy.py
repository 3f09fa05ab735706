"""Files that are to be written later, kept in host memory as the bytes they will have.

What `torch.save` writes is the snapshot: tensors are copied where they stand in the file, once for all that share their
memory, and everything else as it is pickled at that moment. So a file written later is the file that would have been
written at once, to the last byte.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.checkpoint_marker import MarkedFile

BLOCK = 8 << 20
"""Bytes of memory that are taken, hashed and written at once."""
_PAGE = 4096
"""What the kernel writes without a copy of its own is a multiple of this, in memory and in the file."""


class HostMemory:
    """Memory of one rank's snapshot in blocks, kept from one save to the next.

    Copying into memory that is new to the process takes several times as long, and that there is enough of it shows at
    the first save. One snapshot at a time.
    """

    def __init__(self) -> None:
        self._blocks: list[memoryview] = []
        self._taken = 0

    def begin(self) -> None:
        """Give all of it to another snapshot; what the one before did not need is let go."""
        del self._blocks[self._taken :]
        self._taken = 0

    def block(self) -> memoryview:
        """Bytes that are good until the next `begin`, on whole pages."""
        if self._taken == len(self._blocks):
            try:
                pages = mmap.mmap(-1, BLOCK)
            except OSError as error:
                raise MemoryError(error.strerror) from error
            pages.madvise(mmap.MADV_HUGEPAGE)
            self._blocks.append(memoryview(pages))
        self._taken += 1
        return self._blocks[self._taken - 1]


class FileInMemory:
    """A file as `torch.save` wants one, whose bytes are kept."""

    def __init__(self, memory: HostMemory) -> None:
        self._memory = memory
        self._blocks: list[memoryview] = []
        self.size = 0

    def write(self, content: bytes | memoryview) -> int:
        left = memoryview(content)
        while left:
            start = self.size % BLOCK
            if start == 0:
                self._blocks.append(self._memory.block())
            part = left[: BLOCK - start]
            self._blocks[-1][start : start + len(part)] = part
            left = left[len(part) :]
            self.size += len(part)
        return len(content)

    def flush(self) -> None:
        pass

    def write_to(self, path: Path) -> MarkedFile:
        """Write it to `path`, flushed to disk, past the kernel's cache where the file system can.

        That spares the cores a copy and the cache what nobody reads. Raises OSError when the disk refuses.
        """
        digest = hashlib.sha256()
        descriptor = _open_direct(path)
        try:
            for block, length in self._filled():
                digest.update(block[:length])
                _write_all(descriptor, block[: -(-length // _PAGE) * _PAGE])
            os.ftruncate(descriptor, self.size)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return MarkedFile(size=self.size, sha256=digest.hexdigest())

    def _filled(self) -> Iterator[tuple[memoryview, int]]:
        for number, block in enumerate(self._blocks):
            yield block, min(BLOCK, self.size - number * BLOCK)


def _open_direct(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        return os.open(path, flags | os.O_DIRECT, 0o644)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, flags, 0o644)


def _write_all(descriptor: int, content: memoryview) -> None:
    while content:
        try:
            written = os.write(descriptor, content)
        except OSError as error:
            if error.errno != errno.EINVAL or not _through_the_cache(descriptor):
                raise
            continue
        content = content[written:]
        if content:  # cut short within a page, perhaps
            _through_the_cache(descriptor)


def _through_the_cache(descriptor: int) -> bool:
    """Write through the kernel's cache from here on; whether it did not before."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)
    return bool(flags & os.O_DIRECT)
