"""DeepSpeed's files of a checkpoint, hashed while they are written.

So every byte is hashed once, by the rank that writes it and at the time it does: no host reads its files again, and
what the marker says is what was meant to be written. Where they are written in the background, they are kept in memory
until then.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from torch.utils import serialization

from pipeline.checkpoint_marker import MarkedFile, measured
from pipeline.durable import fsync_file
from pipeline.errors import WorldError
from pipeline.training.host_copy import FileInMemory, HostMemory

_RANK = re.compile(r"rank_?(\d+)")


class StateFiles:
    """The files that this rank writes into the folder of one checkpoint."""

    def __init__(self, folder: Path, memory: HostMemory | None = None) -> None:
        """memory: for what `save` is given, until `write`; without it `save` writes at once."""
        self._folder, self._memory = folder, memory
        self._waiting: list[tuple[Path, FileInMemory]] = []
        if memory is not None:
            memory.begin()
        self.written: dict[str, MarkedFile] = {}
        """By path below the folder."""

    def save(self, state_dict: Any, path: str) -> None:
        """`torch.save` to `path`, flushed to disk; stands in for the method of DeepSpeed's checkpoint engine.

        Raises `WorldError` naming the file when the disk refuses; what was written of it is removed, so that there is
        room again to say so. With memory nothing is written yet: `WorldError` where the host has not enough of it.
        """
        if self._memory is not None:
            waiting = FileInMemory(self._memory)
            try:
                _serialize(state_dict, waiting)
            except MemoryError as error:
                raise WorldError(
                    f"{path}: this host has not enough memory for a copy of what is saved ({error}); "
                    "train.save_in_background false saves without one"
                ) from error
            self._waiting.append((Path(path), waiting))
            return
        with self._hashed(Path(path)) as file:
            try:
                _serialize(state_dict, file)
            except RuntimeError as error:  # what torch makes of an error of the file
                if file.failure is None:
                    raise
                raise file.failure from error

    def write(self) -> None:
        """Write what is kept in memory, as `save` would have."""
        waiting, self._waiting = self._waiting, []
        for path, kept in waiting:
            with naming(path):
                self._tell(path, kept.write_to(path))

    @contextmanager
    def _hashed(self, path: Path) -> Iterator[_HashedFile]:
        with naming(path), open(path, "wb") as file:
            hashed = _HashedFile(file)
            yield hashed
            file.flush()
            os.fsync(file.fileno())
        self._tell(path, MarkedFile(size=hashed.size, sha256=hashed.digest.hexdigest()))

    def measure(self, paths: list[Path]) -> None:
        """Read and flush files in the folder that others wrote, where they are not told yet."""
        for path in paths:
            if str(path.relative_to(self._folder)) not in self.written:
                fsync_file(path)
                self._tell(path, measured(path))

    def _tell(self, path: Path, file: MarkedFile) -> None:
        self.written[str(path.relative_to(self._folder))] = file


class _HashedFile:
    """A file as `torch.save` wants one, which writes from the first byte to the last."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.size = 0
        self.failure: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            written = self._file.write(content)
        except OSError as error:
            self.failure = error
            raise
        self.digest.update(content)
        self.size += written
        return written

    def flush(self) -> None:
        self._file.flush()


def _serialize(state_dict: Any, file: Any) -> None:
    # Without the archive's own checksums: computing them takes half as long as the hash, which says more.
    options: Any = serialization.config
    with options.patch({"save.compute_crc32": False, "save.use_pinned_memory_for_d2h": True}):
        torch.save(state_dict, file)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn what a disk refuses within the block into a `WorldError` with the file's name, and remove what there is of
    it."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not path.is_dir():
            path.unlink(missing_ok=True)
        raise refused(path, error) from error


def refused(path: Path, error: Exception) -> WorldError:
    """The error for a file that the disk does not take."""
    reason = (error.strerror if isinstance(error, OSError) else None) or error
    return WorldError(
        f"{path} cannot be written: {reason}; the checkpoints before it are whole, and the same command continues from "
        "the last"
    )


def rank_of_file(name: str, world_size: int) -> int:
    """The rank that reads a checkpoint's file, as far as its name tells; rank 0 for those of all.

    Of a checkpoint that another number of ranks wrote, ranks take their turns.
    """
    match = _RANK.search(name.replace("mp_rank", "mp"))
    return int(match[1]) % world_size if match else 0
