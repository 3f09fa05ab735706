"""Start the ranks of a stage on this machine with torchrun, and end them with their parent.

A killed parent must not leave ranks behind that go on writing into the run: on Linux each child asks the kernel to be
killed when its parent dies, torchrun by us and each rank by itself (`die_with_parent`).
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_SECONDS_BETWEEN_SIGNALS = 2.0


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Ask the kernel to send this process a signal when the thread that started it ends (Linux; elsewhere nothing)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def run_ranks(
    module: str, arguments: Sequence[str], *, ranks: int, launcher_log: Path, environment: Mapping[str, str]
) -> int:
    """Run `python -m module arguments` as `ranks` ranks and wait; returns torchrun's exit code.

    stdout is shared (rank 0's progress goes there); stderr, where torchrun and libraries talk, goes to `launcher_log`.
    SIGTERM and SIGUSR1 to this process reach every rank; a second SIGTERM kills them.
    """
    launcher_log.parent.mkdir(parents=True, exist_ok=True)
    # torchrun leaves a folder behind for logs that it then does not write; it gets one that is removed.
    with open(launcher_log, "ab") as log, tempfile.TemporaryDirectory(prefix="adaponder-torchrun-") as scratch:
        command = [
            *(sys.executable, "-m", "torch.distributed.run"),
            *("--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", str(ranks), "--log-dir", scratch),
            *("--signals-to-handle", "SIGINT,SIGHUP,SIGQUIT"),
            *("--module", module, *arguments),
        ]
        process = subprocess.Popen(
            command,
            stderr=log,
            env={**os.environ, **environment},
            preexec_fn=before_child,
        )
        return wait_for_ranks(process)


def wait_for_ranks(process: subprocess.Popen, same_request_seconds: float = 0.0) -> int:
    """Wait for torchrun, which is `process`; its exit code. Meanwhile SIGTERM and SIGUSR1 reach every rank.

    A second SIGTERM, if it comes more than `same_request_seconds` after the first signal, kills the ranks.
    """
    try:
        with _passing_on(process, same_request_seconds):
            return process.wait()
    except BaseException:
        # Ctrl-C reaches torchrun too, which ends its ranks; give it the time, then make sure.
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            process.kill()
        raise


def before_child() -> None:
    """What a process does before it becomes torchrun or a rank's helper: it ends with its parent, and hears no signals
    to stop."""
    die_with_parent()
    # A scheduler signals every process of a job. torchrun would kill the ranks 30 s after a SIGTERM, and die of a
    # SIGUSR1; so it hears neither, and the ranks, which are born with this, neither until they listen themselves.
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _passing_on(process: subprocess.Popen, same_request_seconds: float) -> Iterator[None]:
    """Pass SIGTERM and SIGUSR1 on to the ranks, again and again until they end; a second SIGTERM ends them at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked_at: float | None = None
    ended = threading.Event()

    def pass_on(number: int) -> None:
        while not ended.is_set():
            for rank in _children(process.pid):
                with suppress(ProcessLookupError):
                    os.kill(rank, number)
            # A rank that is only just starting has not heard it; SIGUSR1 never counts as a second request.
            number = signal.SIGUSR1
            ended.wait(_SECONDS_BETWEEN_SIGNALS)

    def came(number: int, _: object) -> None:
        nonlocal asked_at
        now = time.monotonic()
        if asked_at is None:
            asked_at = now
            threading.Thread(target=pass_on, args=(number,), daemon=True).start()
        elif number == signal.SIGTERM and now - asked_at >= same_request_seconds:
            process.kill()

    before = {number: signal.signal(number, came) for number in _STOP_SIGNALS}
    try:
        yield
    finally:
        ended.set()
        for number, handler in before.items():
            signal.signal(number, handler)


def _children(parent: int) -> list[int]:
    """Processes that `parent` started, the ranks of a torchrun (Linux; elsewhere none is found)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            # "pid (name) state ppid ..."; the name may hold anything.
            fields = (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            if int(fields[1]) == parent:
                found.append(int(entry.name))
    return found


def threads_per_rank(ranks: int) -> int:
    """CPU threads for each of `ranks` processes on this machine: an equal share of the cores."""
    return max(1, len(os.sched_getaffinity(0)) // ranks)
