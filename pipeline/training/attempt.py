"""An attempt is one start of a run's ranks: its number, its log files, and how a rank's end reaches the operator.

Each rank writes logs/attempt-001-rank-0000.log; a rank that fails leaves a .error.json beside it, from which the
command that started the ranks makes its one line (torchrun itself only knows exit codes).
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import re
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import IO, Any

from launch.torchrun import FAILURES_VARIABLE, LastWords
from pipeline.console import console
from pipeline.durable import write_json
from pipeline.errors import AdaPonderError, UserError, WorldError
from pipeline.host_name import host_name
from pipeline.training.hang_report import hang_line
from pipeline.training.lost_ranks import LOST_PEER, LostRanks
from pipeline.training.stopping import Stopped
from pipeline.training.watchdog import Hang

ATTEMPT_VARIABLE = "ADAPONDER_ATTEMPT"
_SOURCE_PLACE = re.compile(r"^\[/\S*:\d+\] ")
_ROOM_FOR_REPORTS = 1 << 16
"""Bytes; a rank whose disk has less may have failed because of it, and could not write why."""
_CONTINUES = "the same command continues from the last checkpoint"
# torchrun's report of the failure that it saw first.
_FIRST_FAILURE = re.compile(r"Root Cause.*?rank\s*:\s*(\d+).*?exitcode\s*:\s*(-?\d+)", re.DOTALL)


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


def _stop_file(logs: Path, attempt: int) -> Path:
    return logs / f"attempt-{attempt:03d}-stopped.json"


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
        except BlockingIOError:  # held by somebody
            if time.monotonic() > deadline:
                file.seek(0)
                raise UserError(f"{folder} is being trained by {file.read().strip()}: wait for it, or end it") from None
            time.sleep(0.2)
        except OSError as error:
            # Some network file systems know no locks; a run that is started once needs none.
            console.print(f"note: {folder} cannot be locked ({error.strerror}): start this run only once at a time")
            break
    file.truncate(0)
    file.write(f"process {os.getpid()} on {host_name()}\n")
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


def report_failure(logs: Path | None, attempt: int, rank: int, error: BaseException) -> int:
    """Leave this rank's error for the command; returns the exit code to end with.

    logs: None where the recipe that decides it could not be read.
    """
    if isinstance(error, Stopped):  # no failure: rank 0 has left `report_stop`
        print(error, file=sys.stderr)
        return error.exit_code
    if attempt or not isinstance(error, AdaPonderError):
        traceback.print_exception(error)
    elif FAILURES_VARIABLE not in os.environ:  # nobody else tells it, there is no log yet, and it is meant as it is
        print(f"rank {rank} on {host_name()}: {error}", file=sys.stderr)
    message = str(error)
    if isinstance(error, UserError):
        kind = "user"
    elif isinstance(error, LostRanks):
        kind = "lost"
    elif isinstance(error, AdaPonderError):
        kind = "world"
    elif isinstance(error, OSError):
        kind, message = "world", f"{error.filename or 'a file'}: {error.strerror or error}"
    elif isinstance(error, (KeyboardInterrupt, SystemExit)) or LOST_PEER.search(message):
        # The rank was told to end, or waited for one that had: it does not know why.
        kind = "bystander"
    else:
        kind, message = "bug", "".join(traceback.format_exception(error))
    exit_code = error.exit_code if isinstance(error, AdaPonderError) else 1
    _write_report(logs, attempt, rank, exit_code, kind=kind, message=message)
    return exit_code


def report_hang(logs: Path, attempt: int, rank: int, world_size: int, hang: Hang) -> None:
    """Leave where this rank stood when nothing went on any more."""
    _write_report(logs, attempt, rank, 1, kind="hang", world_size=world_size, **dataclasses.asdict(hang))


def report_loss(logs: Path, attempt: int, rank: int, line: str) -> None:
    """Leave that this rank ends since others are gone."""
    _write_report(logs, attempt, rank, 1, kind="lost", message=line)


def reported_losses(logs: Path, attempt: int) -> list[dict[str, Any]]:
    """What ranks that lost others have left so far, in the order of ranks."""
    return [report for report in reports(logs, attempt) if report["kind"] == "lost"]


def reported_hangs(logs: Path, attempt: int) -> list[dict[str, Any]]:
    """What the ranks' watchdogs have left so far, in the order of ranks."""
    return [report for report in reports(logs, attempt) if report["kind"] == "hang"]


def report_stop(logs: Path, attempt: int, stop: Stopped) -> None:
    """Leave for the command that the ranks end because they were asked to; rank 0 alone."""
    content = {"message": str(stop), "step": stop.step, "requeue": stop.requeue, "again": stop.again}
    write_json(_stop_file(logs, attempt), content)


def reported_stop(logs: Path, attempt: int) -> Stopped | None:
    """The stop that `attempt` ended with, None where it ended otherwise."""
    path = _stop_file(logs, attempt)
    if not path.is_file():
        return None
    left = json.loads(path.read_text(encoding="utf-8"))
    return Stopped(left["message"], step=left["step"], requeue=left["requeue"], again=left["again"])


def _write_report(logs: Path | None, attempt: int, rank: int, exit_code: int, **content: Any) -> None:
    report = {"time": time.time(), "rank": rank, "host": host_name(), **content}
    line, log = one_line(report), "" if logs is None or not attempt else f" ({rank_log(logs, attempt, rank)})"
    # First: the run's folder may be what has failed.
    LastWords(f"{line}{log}", report["kind"] in ("bystander", "lost"), report["time"], exit_code).leave(rank)
    if logs is not None:
        write_json(_error_file(logs, attempt, rank), report)


def one_line(report: dict[str, Any]) -> str:
    """What a rank has left, in one line."""
    if report["kind"] == "hang":
        return f"no sign of life while {report['doing']}, in {report['function']}"
    lines = str(report.get("message", "")).strip().splitlines() or ["no message"]
    if report["kind"] == "bug":  # a traceback
        return lines[-1]
    if report["kind"] == "bystander":  # without the place in gloo's source and its advice
        return f"lost other ranks: {_SOURCE_PLACE.sub('', lines[0]).partition('. ')[0]}"
    return lines[0]


def reports(logs: Path, attempt: int) -> list[dict[str, Any]]:
    """What ranks of an attempt have left of how they ended, in the order of ranks."""
    files = sorted(logs.glob(f"attempt-{attempt:03d}-*.error.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in files]


def first_told(found: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The report that says what went wrong: the earliest, ranks that only lost others after all that failed by
    themselves, ranks that know nothing not at all."""
    telling = [report for report in found if report["kind"] != "bystander"]
    return min(telling, key=lambda report: (report["kind"] == "lost", report["time"]), default=None)


def raise_first_failure(logs: Path, attempt: int, exit_code: int) -> None:
    """Raise what went wrong first in `attempt`, for the command that started the ranks.

    `UserError` and `WorldError` as the rank raised them; a bug with the rank's traceback; `WorldError` naming the rank
    that ended without a word (killed from outside, out of memory) where only others report that they lost it, and
    naming who held up whom where nothing went on.
    """
    first = first_told(reports(logs, attempt))
    if first is None:
        if shutil.disk_usage(logs).free < _ROOM_FOR_REPORTS:
            raise WorldError(
                f"{logs}: {os.strerror(errno.ENOSPC)}, so that no rank could say what it failed in; {_CONTINUES}"
            )
        log = launcher_log(logs, attempt)
        seen = _FIRST_FAILURE.search(log.read_text(encoding="utf-8", errors="replace")) if log.is_file() else None
        who = f"rank {seen[1]} ended with exit code {seen[2]}" if seen else f"the ranks ended with {exit_code}"
        raise WorldError(
            f"{who} and no message (killed from outside, or out of memory): see {log} and the rank logs beside it; "
            f"{_CONTINUES}"
        )
    if first["kind"] == "user":
        raise UserError(first["message"])
    if first["kind"] == "hang":
        raise WorldError(hang_line(reported_hangs(logs, attempt)))
    if first["kind"] == "lost":
        raise LostRanks(first["message"])
    where = f"rank {first['rank']} on {first['host']}"
    if first["kind"] == "world":
        raise WorldError(f"{where}: {first['message']}")
    raise RuntimeError(f"{where} failed:\n{first['message']}")
