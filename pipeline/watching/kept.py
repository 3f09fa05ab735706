"""Checkpoints that a watcher keeps from retention until they are judged."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from pipeline.checkpoint_lock import reading
from pipeline.checkpoint_marker import MARKER
from pipeline.errors import WorldError

Mark = tuple[int, int]


def mark_of(checkpoint: Path) -> Mark | None:
    """Tells a checkpoint from a later one of its step without reading it; None where it is none any more."""
    try:
        found = (checkpoint / MARKER).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


class Kept:
    """The locks, by the checkpoint's name."""

    def __init__(self) -> None:
        self._locks: dict[str, tuple[Mark, ExitStack]] = {}

    def keep(self, path: Path, mark: Mark) -> None:
        """One that is being removed right now is not kept."""
        if path.name in self._locks and self._locks[path.name][0] == mark:
            return
        self.let_go(path.name)  # of an earlier checkpoint of that step
        stack = ExitStack()
        try:
            stack.enter_context(reading(path))
        except WorldError:
            return
        self._locks[path.name] = mark, stack

    def let_go(self, name: str) -> None:
        if name in self._locks:
            self._locks.pop(name)[1].close()

    def let_all_go(self) -> None:
        for name in list(self._locks):
            self.let_go(name)
