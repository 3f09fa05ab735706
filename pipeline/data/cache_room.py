"""Locks and room in the cache of shards that all processes of a machine share.

Locks are the kernel's (flock): it gives them back when a process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
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
        total = sum(state.st_size for state, _ in found)
        for state, path in sorted(found, key=lambda item: item[0].st_mtime_ns):
            if total + size <= cache_bytes:
                break
            if path != needed and _remove_unless_used(path, path):
                total -= state.st_size


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
        # NFS locks exclusively only what is open for writing.
        descriptor = os.open(lock, os.O_RDWR)
    except FileNotFoundError:
        return not path.exists()
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise no_locks(lock, error) from error
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


def require_locks(folder: Path) -> None:
    """`UserError` where the file system of `folder` does not give both kinds of locks that a cache takes."""
    path = folder / "tried.lock"
    with locked(path):
        pass
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    except OSError as error:
        raise no_locks(path, error) from error
    finally:
        os.close(descriptor)


def default_root() -> Path:
    """Where the cache is when the recipe names no folder: a user's own in the system's temporary folder."""
    return Path(tempfile.gettempdir()).absolute() / f"adaponder-shards-{os.getuid()}"


def require_own(root: Path) -> None:
    """`UserError` where `root` is `default_root` and may be another user's, who can guess its name and write beside it.

    A folder that the recipe names may be shared.
    """
    found = os.lstat(root)
    if root != default_root():
        return
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UserError(
            f"data.cache: {root} is not a folder of yours that nobody else can write: remove it, or set data.cache"
        )


def no_locks(path: Path, error: OSError) -> UserError:
    return UserError(f"data.cache: {path.parent} knows no locks ({error.strerror}): take a folder on a local disk")
