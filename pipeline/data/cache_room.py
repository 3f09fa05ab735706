"""Locks and room in the cache of shards that all processes of a machine share.

Locks are the kernel's (flock): it gives them back when a process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.durable import PARTIAL_SUFFIX
from pipeline.errors import UserError

LOCKS = "locks"
"""Folder of lock files in a data set's folder: NAME.lock is held while the file NAME is fetched."""


def make_room(root: Path, cache_bytes: int, needed: Path, size: int = 0) -> None:
    """Remove shards and indices, of all data sets below `root`, until `size` bytes more fit into `cache_bytes`.

    What was used longest ago goes first; `needed` and what a process holds a lock on stay. What killed downloads left
    half goes too.
    """
    with locked(root / "room.lock"):
        for partial in root.glob(f"*/*{PARTIAL_SUFFIX}"):
            lock = partial.parent / LOCKS / f"{partial.name.removesuffix(PARTIAL_SUFFIX)}.lock"
            _remove_unless_used(partial, lock)
        found = _cached(root)
        total = sum(stat.st_size for stat, _ in found)
        for stat, path in sorted(found, key=lambda item: item[0].st_mtime_ns):
            if total + size <= cache_bytes:
                break
            if path != needed and _remove_unless_used(path, path):
                total -= stat.st_size


def _cached(root: Path) -> list[tuple[os.stat_result, Path]]:
    found = []
    for suffix in ("tar", "idx"):
        for path in root.glob(f"*/*-*.{suffix}"):
            with contextlib.suppress(FileNotFoundError):  # a reader found it damaged and took it away
                found.append((path.stat(), path))
    return found


def _remove_unless_used(path: Path, lock: Path) -> bool:
    """Remove `path` unless somebody holds a lock on `lock`; whether it is gone."""
    try:
        descriptor = os.open(lock, os.O_RDONLY)
    except FileNotFoundError:
        return not path.exists()
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        path.unlink(missing_ok=True)
        return True
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other threads and processes of this machine out; waits for them."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            raise no_locks(path, error) from error
        yield
    finally:
        os.close(descriptor)


def no_locks(path: Path, error: OSError) -> UserError:
    return UserError(f"data.cache: {path.parent} knows no locks ({error.strerror}): take a folder on a local disk")
