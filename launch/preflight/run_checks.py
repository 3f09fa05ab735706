"""All checks in their order, on every rank; rank 0 makes the report.

What one process can see comes first, then what ranks tell each other, then what they compute together.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from launch.preflight import (
    all_reduce,
    clocks,
    devices,
    disk,
    memory,
    mock_step,
    network,
    shards,
    shared_folder,
    slow_ranks,
    tracking,
    versions,
)
from launch.preflight.check import Check, Checked, Context, Finding, Told
from launch.preflight.together import look_together
from pipeline.errors import AdaPonderError, UserError, WorldError

HERE = (disk.CHECK, shards.CHECK, tracking.CHECK)
"""What a machine can say that only starts the training and is none of its nodes."""
ON_RANKS = (
    *(versions.CHECK, devices.CHECK, memory.CHECK, disk.CHECK, shared_folder.CHECK, clocks.CHECK, shards.CHECK),
    *(tracking.CHECK, network.CHECK, all_reduce.CHECK, slow_ranks.CHECK, mock_step.CHECK),
)
_GROUND = ("versions", "devices", "network")
"""Where one of these failed nothing can be computed together."""


def run_checks(
    context: Context, checks: Sequence[Check], tell: Callable[[str], None], report: Callable[[list[Checked]], None]
) -> list[Checked]:
    """Make the checks; collective. Returns what was found, on every rank.

    tell: called on rank 0 with what is being looked at. report: called on rank 0 with all that was found, also where a
    check that computes together fails on some rank; then the process ends with exit code 1.
    """
    done: list[Checked] = []
    rank = context.meeting.rank
    for check in checks:
        missing = [each.name for each in done if each.name in _GROUND and each.verdict == "failed"]
        if check.name in context.settings.skip:
            done.append(_skipped(check, "cluster.preflight.skip names it"))
        elif check.collective and missing:
            done.append(_skipped(check, f"needs {', '.join(missing)}"))
        else:
            if rank == 0:
                tell(check.name)
            began = time.monotonic()
            findings = _made(context, check, lambda failed: report([*done, failed]))
            done.append(Checked(check.name, time.monotonic() - began, findings))
    if rank == 0:
        report(done)
    return done


def exit_code(done: Sequence[Checked]) -> int:
    """0 where nothing failed, 2 where the user's mistakes did and nothing else, else 1."""
    failed = [finding for checked in done for finding in checked.findings if finding.verdict == "failed"]
    if not failed:
        return 0
    return UserError.exit_code if all(finding.user for finding in failed) else WorldError.exit_code


def _skipped(check: Check, why: str) -> Checked:
    return Checked(check.name, 0.0, [Finding("skipped", why)])


def _made(context: Context, check: Check, report: Callable[[Checked], None]) -> list[Finding]:
    """The findings of one check, the same on every rank."""
    meeting = context.meeting
    if check.collective:
        began = time.monotonic()
        seen = look_together(
            meeting,
            check.name,
            lambda: _looked(context, check),
            lambda told: report(Checked(check.name, time.monotonic() - began, _errors(told))),
        )
    else:
        seen = _looked(context, check)
    try:
        told = meeting.tell(check.name, seen)
    except WorldError as error:
        return [Finding("failed", str(error))]
    if errors := _errors(told):
        return errors
    judged = _judged(context, check, told) if meeting.rank == 0 else None
    return [Finding(**content) for content in meeting.from_rank_0(f"{check.name}/findings", judged)]


def _looked(context: Context, check: Check) -> dict[str, Any]:
    """{"seen": what the check saw} or {"error": why it could not}."""
    try:
        return {"seen": check.look(context)}
    except Exception as error:  # a check must not keep the others from being made
        return {"error": _message(error), "user": isinstance(error, UserError)}


def _judged(context: Context, check: Check, told: Sequence[Told]) -> list[dict[str, Any]]:
    try:
        found = check.judge(context, [Told(each.place, each.seen["seen"]) for each in told])
    except Exception as error:  # the other ranks are waiting for an answer
        found = [Finding("failed", _message(error), user=isinstance(error, UserError))]
    return [asdict(each) for each in found]


def _message(error: Exception) -> str:
    if isinstance(error, AdaPonderError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'}: {error.strerror or error}"
    traceback.print_exception(error)
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:500]}"


def _errors(told: Sequence[Told]) -> list[Finding]:
    """One finding for each error, with the ranks that met it."""
    places: dict[tuple[str, bool], list[str]] = {}
    for each in told:
        if "error" in each.seen:
            places.setdefault((each.seen["error"], each.seen["user"]), []).append(str(each.place))
    found = []
    for (error, user), where in places.items():
        more = f" and {len(where) - 4} more" if len(where) > 4 else ""
        found.append(Finding("failed", f"{error} ({', '.join(where[:4])}{more})", user=user))
    return found
