"""Writing a checkpoint beside the training, one at a time.

Each rank writes from a thread of its own and tells rank 0's thread through the store by which the ranks found each
other: no collective, which would get between those of the training, and no file, which another host may see late. Rank
0 makes the checkpoint whole and tells the others. So a save that has begun needs no rank's main thread any more: it is
finished even where the training fails meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import NoReturn

import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from pipeline.checkpoint_marker import MarkedFile
from pipeline.errors import WorldError
from pipeline.host_name import host_name
from pipeline.training.agreement import message_of, told_by_all
from pipeline.training.checkpoint_files import CheckpointFiles
from pipeline.training.host_copy import HostMemory

_NICENESS = 10
"""A tenth of a core that training wants too, all of one that it leaves. At 19, the lowest priority, a checkpoint would
be in flight for longer, and a kill would cost more steps."""
_FAILED_TRAINING_WAITS_SECONDS = 10.0
"""For a save, which may wait for a rank that is gone: torchrun kills what has not ended after 30 s."""
_NO_TIMEOUT = timedelta(days=365)
"""Of the store: how long a rank writes is its disk's affair; one that is gone ends the training."""
_OUTCOME = "outcome"


class _FailedElsewhere(WorldError):
    """With the message of the rank that could not write."""


@dataclass(frozen=True)
class Completed:
    """A checkpoint that is there."""

    size: int
    """Bytes of all files but the marker."""
    seconds: float
    """From the beginning of the save."""
    seconds_lost: float
    """Of these the training stood still, on rank 0."""


class SavesInFlight:
    """One rank's saves; used in a `with` around the training, whose end waits for the last one."""

    def __init__(self, background: bool, took: Callable[[float], None] = lambda seconds: None) -> None:
        """background: the training goes on while a copy of its state is written; otherwise it waits. took: told the
        seconds of each save that is complete, from its own thread."""
        self._memory = HostMemory() if background else None
        self._took = took
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._store = TCPStore(host, port, None, False, wait_for_workers=False)
        self._store.set_timeout(_NO_TIMEOUT)
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None
        self._message = ""
        self._abandoned = threading.Event()
        self._lost = 0.0
        self._waiting_since: float | None = None

    @property
    def failed(self) -> bool:
        """Whether this rank knows of a checkpoint that could not be made whole."""
        return self._failure is not None

    def begin(
        self,
        began: float,
        take: Callable[[HostMemory | None], CheckpointFiles],
        completed: Callable[[Completed], None],
    ) -> None:
        """Take a checkpoint's files and write them, after the save before; collective.

        began: when the training came to a stop for it, monotonic. completed: called on rank 0 when all of it is there,
        from the save's own thread. Raises as `wait` and `take` do.
        """
        before = time.monotonic()
        self.wait()
        began += time.monotonic() - before  # which is the other one's
        files = take(self._memory)
        self._lost = time.monotonic() - began
        # Not waited for by an interpreter that ends: it may itself wait for a rank that is gone.
        self._thread = threading.Thread(target=self._run, args=(files, began, completed), name="saving", daemon=True)
        self._thread.start()
        if self._memory is None:
            self.wait()

    def wait(self) -> None:
        """Until no save is in flight: the checkpoint is complete on disk, on whatever rank this is called.

        Raises on every rank what kept it from being so on any: `WorldError` naming the file when a disk refused.
        """
        if self._thread is not None:
            self._waiting_since = time.monotonic()
            self._hurry(self._thread)
            self._thread.join()
            self._waiting_since = self._thread = None
        if self._failure is not None:
            self._raise(self._message)

    def raise_failure(self) -> NoReturn:
        """`wait`'s error on every rank, where `failed` is true on any; collective."""
        told = told_by_all(self._message or None)
        self._raise("; ".join(dict.fromkeys(message for message, _ in told)))

    def __enter__(self) -> SavesInFlight:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.wait()
        elif self._thread is not None and not self.failed:
            self._hurry(self._thread)
            self._thread.join(_FAILED_TRAINING_WAITS_SECONDS)
            self._abandoned.set()

    def _hurry(self, thread: threading.Thread) -> None:
        """Give the save this thread's priority, where the system lets it rise again: others may want the cores."""
        with contextlib.suppress(OSError):  # not permitted, or already over
            if thread.is_alive() and thread.native_id is not None:
                os.setpriority(os.PRIO_PROCESS, thread.native_id, os.getpriority(os.PRIO_PROCESS, 0))

    def _raise(self, message: str) -> NoReturn:
        if self._failure is not None and not isinstance(self._failure, WorldError | OSError):
            raise self._failure  # a bug, with its place
        raise WorldError(message) from self._failure

    def _run(self, files: CheckpointFiles, began: float, completed: Callable[[Completed], None]) -> None:
        store = PrefixStore(files.save_id, self._store)
        try:
            if self._memory is not None:
                # The kernel has a priority for each thread.
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
            written = files.write()
            store.set(str(self._rank), json.dumps({name: file.model_dump() for name, file in written.items()}))
            if self._rank == 0:
                size = files.complete(self._all_written(store))
                completed(Completed(size, time.monotonic() - began, self._lost + self._waited()))
                store.set(_OUTCOME, "")
            elif message := store.get(_OUTCOME).decode():
                raise _FailedElsewhere(message)
        except Exception as error:  # whatever it is, the training must end with it
            where = "" if isinstance(error, _FailedElsewhere) else f" (rank {self._rank} on {host_name()})"
            self._message = message_of(error) + where
            with contextlib.suppress(RuntimeError):  # the store has gone with rank 0: the training ends anyway
                store.set(str(self._rank), json.dumps({"failed": self._message}))
                if self._rank == 0:
                    store.set(_OUTCOME, self._message)
            self._failure = error
            return
        self._took(time.monotonic() - began)

    def _all_written(self, store: Store) -> dict[str, MarkedFile]:
        """What all ranks have written, once they have. Raises `WorldError` with the message of one that could not."""
        written: dict[str, MarkedFile] = {}
        for rank in range(self._world_size):
            told = json.loads(store.get(str(rank)))
            store.delete_key(str(rank))
            if "failed" in told:
                raise _FailedElsewhere(told["failed"])
            written |= {name: MarkedFile(**file) for name, file in told.items()}
        if self._abandoned.is_set():  # this process has let go of the run, another one may hold it
            raise WorldError("the training ended before its last checkpoint was complete")
        return written

    def _waited(self) -> float:
        since = self._waiting_since
        return 0.0 if since is None else time.monotonic() - since
