"""Who has a checkpoint in hand: numbered claim files, of which the highest counts.

A claim takes its name by a hard link, which one of several hosts gets also on NFS. Claim n + 1 may be made once claim n
was given back or its holder is dead, and nothing is ever removed: so each number has one holder, and a watcher that
looked at the folder long ago cannot take what another has taken since. The holder touches its claim to say that it
lives; both times that are compared are the file system's, so that hosts' clocks need not agree.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.durable import write_new, write_text
from pipeline.host_name import host_name

HEARTBEAT_SECONDS = 15.0
STALE_SECONDS = 180.0
"""A claim that was not touched for so long is nobody's; attributes on NFS may be a minute old."""
_NAME = re.compile(r"claim-(\d{4,})\.json")


class Holder(BaseModel):
    """The content of a claim."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str
    pid: int
    process_began: int
    """In clock ticks since the host's start; tells a process from a later one with its number."""
    pid_space: str
    """Where the number means something: the host's boot and the namespace, for containers that share a host's name."""
    time: float
    """When it was claimed, seconds since 1970 by the host's clock."""
    released: bool = False


class Claim:
    """A claim that this process holds, touched from a thread of its own until it is given back."""

    def __init__(self, path: Path, holder: Holder, heartbeat_seconds: float) -> None:
        self.path, self._holder = path, holder
        self.lost = threading.Event()
        """Set when another process has taken over: this one was silent for too long."""
        self._over = threading.Event()
        self._thread = threading.Thread(
            target=self._beat, args=(heartbeat_seconds,), name=f"heartbeat of {path.parent.name}", daemon=True
        )
        self._thread.start()

    @property
    def number(self) -> int:
        return _number(self.path)

    def release(self) -> None:
        """Give it back: the next one may claim at once."""
        self._over.set()
        self._thread.join()
        if not self.still_held():
            return
        write_text(self.path, self._holder.model_copy(update={"released": True}).model_dump_json() + "\n")

    def still_held(self) -> bool:
        """Whether nobody has taken over."""
        if _path(self.path.parent, self.number + 1).exists():
            self.lost.set()
        return not self.lost.is_set()

    def _beat(self, seconds: float) -> None:
        while not self._over.wait(seconds):
            if not self.still_held():
                return
            with contextlib.suppress(OSError):  # a server that is away for a while; for too long, and the claim is lost
                os.utime(self.path)


def claim(
    folder: Path, heartbeat_seconds: float = HEARTBEAT_SECONDS, stale_seconds: float = STALE_SECONDS
) -> Claim | None:
    """Claim the job in that folder, which exists; None where somebody who lives has it.

    What the job's files said before the claim may be outdated: read them again. Raises OSError when the file system
    refuses.
    """
    highest = _highest(folder)
    if highest and is_held(folder, stale_seconds):
        return None
    path, holder = _path(folder, highest + 1), _myself()
    if not write_new(path, holder.model_dump_json() + "\n"):
        return None
    return Claim(path, holder, heartbeat_seconds)


@contextmanager
def given_back(mine: Claim) -> Iterator[ExitStack]:
    """Give a claim back at the end of the block, unless it took that out of the stack."""
    with ExitStack() as stack:
        stack.callback(mine.release)
        yield stack


def is_held(folder: Path, stale_seconds: float = STALE_SECONDS) -> bool:
    """Whether the job is in the hands of a process that lives, as far as one can tell from here."""
    return holder_of(folder, stale_seconds) is not None


def holder_of(folder: Path, stale_seconds: float = STALE_SECONDS) -> Holder | None:
    """The living holder of the job's claim; None where it was never claimed, given back, or the holder is dead."""
    highest = _highest(folder)
    if not highest:
        return None
    path = _path(folder, highest)
    try:
        with open(path, "rb") as file:  # opening asks the server anew, looking up alone may not
            touched = os.fstat(file.fileno()).st_mtime
            holder = Holder.model_validate_json(file.read())
    except FileNotFoundError:  # the folder was removed by hand
        return None
    except ValidationError:
        holder, touched = None, path.stat().st_mtime
    if holder is not None and (holder.released or _is_dead(holder)):
        return None
    if _file_system_now(folder) - touched > stale_seconds:
        return None
    return holder or Holder(host="?", pid=0, process_began=0, pid_space="", time=touched)


def _highest(folder: Path) -> int:
    numbers = [int(match[1]) for name in os.listdir(folder) if (match := _NAME.fullmatch(name))]
    return max(numbers, default=0)


def _path(folder: Path, number: int) -> Path:
    return folder / f"claim-{number:04d}.json"


def _number(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match
    return int(match[1])


def _myself() -> Holder:
    pid = os.getpid()
    return Holder(host=host_name(), pid=pid, process_began=_began(pid) or 0, pid_space=_pid_space(), time=time.time())


def _is_dead(holder: Holder) -> bool:
    """Only where its number means something here; of other hosts the heartbeat tells."""
    if not holder.pid_space or holder.pid_space != _pid_space():
        return False
    return _began(holder.pid) != holder.process_began


def _began(pid: int) -> int | None:
    """When a process began, in clock ticks since the host's start, which no change of its clock moves.

    None where there is none, or what is left of one that has ended.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _pid_space() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")
    try:
        return f"{boot.read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _file_system_now(folder: Path) -> float:
    """What time it is for whoever keeps the folder."""
    probe = folder / f".now-{uuid.uuid4().hex}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:  # one who may only read: the host's own clock is what there is
        return time.time()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
