"""A checkpoint that somebody reads is not removed under them.

A reader holds a shared lock on the marker for as long as it reads; retention removes a checkpoint only with the lock
for itself alone. The kernel gives locks back when a process ends, however it ends, and network file systems carry them
from host to host. Where a file system knows no locks, nothing is removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path

from pipeline.checkpoint_marker import MARKER
from pipeline.durable import fsync_folder
from pipeline.errors import WorldError

REMOVED_SUFFIX = ".removed"
"""What a checkpoint is called from the moment it is none any more until all of it is gone."""


class Removal(Enum):
    """What came of trying to remove a checkpoint."""

    DONE = "removed"
    READ = "somebody reads it"
    NO_LOCKS = "the file system knows no locks"


@contextmanager
def reading(checkpoint: Path) -> Iterator[None]:
    """Keep retention away from the checkpoint within the block.

    Raises `WorldError` when it has been removed since it was found.
    """
    gone = f"{checkpoint} was removed before it could be read: retention (train.keep_last) keeps newer ones"
    try:
        file = open(checkpoint / MARKER, "rb")  # noqa: SIM115 - closed below, within the lock's own block
    except FileNotFoundError as error:
        raise WorldError(gone) from error
    with file:
        with contextlib.suppress(OSError):  # no locks here: then retention gets none either, and removes nothing
            fcntl.flock(file, fcntl.LOCK_SH)
        if not (checkpoint / MARKER).is_file():  # removed while this waited for the lock
            raise WorldError(gone)
        yield


def remove_unless_read(checkpoint: Path) -> Removal:
    """Remove a checkpoint, unless a reader holds it or nobody could.

    First it loses its name, so that at no moment a part of it stands under the name of a checkpoint; then its marker,
    then the rest. What a kill leaves of it carries `REMOVED_SUFFIX`. Raises OSError when the disk refuses.
    """
    removed = checkpoint.with_name(checkpoint.name + REMOVED_SUFFIX)
    if removed.exists():  # of an earlier checkpoint of that step
        shutil.rmtree(removed)
    # For writing: some network file systems give a lock for itself alone to no other.
    with open(checkpoint / MARKER, "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return Removal.READ
        except OSError:
            return Removal.NO_LOCKS
        os.replace(checkpoint, removed)
    fsync_folder(checkpoint.parent)
    remove_for_good(removed)
    return Removal.DONE


def remove_for_good(folder: Path) -> None:
    """Remove what lost its name, the marker first."""
    (folder / MARKER).unlink(missing_ok=True)
    shutil.rmtree(folder)
