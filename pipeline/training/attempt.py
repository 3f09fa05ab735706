"""An attempt is one start of a run's ranks: its number, its log files, and how a rank's end reaches the operator.

Each rank writes logs/attempt-001-rank-0000.log; a rank that fails leaves a .error.json beside it, from which the
command that started the ranks makes its one line (torchrun itself only knows exit codes).
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import IO

from pipeline.console import console
from pipeline.durable import write_json
from pipeline.errors import AdaPonderError, UserError, WorldError

ATTEMPT_VARIABLE = "ADAPONDER_ATTEMPT"


def next_attempt(logs: Path) -> int:
    """One more than the highest attempt that has log files; 1 for the first."""
    numbers = [int(match[1]) for path in logs.glob("attempt-*") if (match := re.match(r"attempt-(\d+)", path.name))]
    return max(numbers, default=0) + 1


def launcher_log(logs: Path, attempt: int) -> Path:
    return logs / f"attempt-{attempt:03d}-launcher.log"


def rank_log(logs: Path, attempt: int, rank: int) -> Path:
    return logs / f"attempt-{attempt:03d}-rank-{rank:04d}.log"


def _error_file(logs: Path, attempt: int, rank: int) -> Path:
    return rank_log(logs, attempt, rank).with_suffix(".error.json")


def hold_run(folder: Path, wait_seconds: float = 20.0) -> IO[str]:
    """Keep other trainings out of the run's folder for as long as the returned file stays open.

    The kernel gives the lock back when the process ends, however it ends. Waits for ranks that are just being killed;
    then raises `UserError` naming who holds the run.
    """
    file = open(folder / "training.lock", "a+", encoding="utf-8")  # noqa: SIM115 - stays open on purpose
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                file.seek(0)
                raise UserError(f"{folder} is being trained by {file.read().strip()}: wait for it, or end it") from None
            time.sleep(0.2)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def log_to_file(logs: Path, attempt: int, rank: int) -> None:
    """Send this process's stdout and stderr to its log file; rank 0's console keeps the original stdout."""
    logs.mkdir(parents=True, exist_ok=True)
    if rank == 0:
        console.file = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(rank_log(logs, attempt, rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def report_failure(logs: Path, attempt: int, rank: int, error: BaseException) -> int:
    """Leave this rank's error for the command; returns the exit code to end with."""
    traceback.print_exception(error)
    known = isinstance(error, AdaPonderError)
    write_json(
        _error_file(logs, attempt, rank),
        {
            "time": time.time(),
            "rank": rank,
            "host": socket.gethostname(),
            "kind": "user" if isinstance(error, UserError) else "world" if known else "bug",
            "message": str(error) if known else "".join(traceback.format_exception(error)),
        },
    )
    return error.exit_code if isinstance(error, AdaPonderError) else 1


def raise_first_failure(logs: Path, attempt: int, exit_code: int) -> None:
    """Raise what went wrong first in `attempt`, for the command that started the ranks.

    `UserError` and `WorldError` as the rank raised them; a bug with the rank's traceback.
    """
    reports = [
        json.loads(path.read_text(encoding="utf-8")) for path in logs.glob(f"attempt-{attempt:03d}-*.error.json")
    ]
    if not reports:
        log = launcher_log(logs, attempt)
        raise WorldError(
            f"the ranks ended with exit code {exit_code} and no message (killed from outside, or out of memory): "
            f"see {log} and the rank logs beside it; the same command continues from the last checkpoint"
        )
    first = min(reports, key=lambda report: report["time"])
    if first["kind"] == "user":
        raise UserError(first["message"])
    where = f"rank {first['rank']} on {first['host']}"
    if first["kind"] == "world":
        raise WorldError(f"{where}: {first['message']}")
    raise RuntimeError(f"{where} failed:\n{first['message']}")
