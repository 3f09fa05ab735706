"""Files that are to be written later, kept in host memory as the bytes they will have.

What `torch.save` writes is the snapshot: tensors are copied where they stand in the file, once for all that share their
memory, and everything else as it is pickled at that moment. So a file written later is the file that would have been
written at once, to the last byte.
"""

from __future__ import annotations

import numpy as np

_LARGE = 1 << 16
"""Bytes from which on a piece is copied into memory that is kept."""


class HostMemory:
    """Memory of one rank's snapshot, kept from one save to the next.

    Copying into memory that is new to the process takes several times as long, and that there is enough of it shows at
    the first save. One snapshot at a time.
    """

    def __init__(self) -> None:
        self._buffers: list[np.ndarray] = []
        self._taken = 0

    def begin(self) -> None:
        """Give all of it to another snapshot; what the one before did not need is let go."""
        del self._buffers[self._taken :]
        self._taken = 0

    def copy(self, content: memoryview) -> memoryview:
        """A copy of these bytes, good until the next `begin`.

        Pieces of the same snapshot come in the same order each time, so each finds a buffer of its size.
        """
        number, self._taken = self._taken, self._taken + 1
        if number == len(self._buffers):
            self._buffers.append(np.empty(len(content), np.uint8))
        elif len(self._buffers[number]) != len(content):
            self._buffers[number] = np.empty(0, np.uint8)  # gone before there is another one
            self._buffers[number] = np.empty(len(content), np.uint8)
        np.copyto(self._buffers[number], np.frombuffer(content, np.uint8))
        return self._buffers[number].data


class FileInMemory:
    """A file as `torch.save` wants one, whose bytes are kept."""

    def __init__(self, memory: HostMemory) -> None:
        self._memory = memory
        self.pieces: list[bytearray | memoryview] = []
        """In their order, small ones joined."""

    def write(self, content: bytes | memoryview) -> int:
        if len(content) >= _LARGE:
            self.pieces.append(self._memory.copy(memoryview(content)))
        else:
            last = self.pieces[-1] if self.pieces else None
            if not isinstance(last, bytearray):
                last = bytearray()
                self.pieces.append(last)
            last.extend(content)
        return len(content)

    def flush(self) -> None:
        pass
