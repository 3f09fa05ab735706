"""What a watcher says: a line for people, an event for machines."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape

from pipeline.console import print_between
from pipeline.errors import WorldError
from pipeline.events import append_event
from pipeline.run_folder import RunFolder
from pipeline.watching.attempt import Try
from pipeline.watching.claims import is_held
from pipeline.watching.job import Job, State, jobs_below


def tell_begun(folder: RunFolder, job: Job, attempt: Try, most: int) -> None:
    """most: tries that a suite gets."""
    tries = max(job.suites[suite].tries for suite in attempt.suites)
    again = f" (try {tries + 1} of {most})" if tries else ""
    print_between(f"watch: {job.checkpoint} begun: {', '.join(attempt.suites)}{again}")
    append_event(
        folder,
        "evaluation_begun",
        checkpoint=job.checkpoint,
        suites=attempt.suites,
        job=attempt.name,
    )


def tell_done(folder: RunFolder, job: Job, suites: list[str], seconds: float) -> None:
    print_between(f"watch: {job.checkpoint} done in {seconds:.0f} s: {', '.join(suites)}")
    append_event(
        folder,
        "evaluation_done",
        checkpoint=job.checkpoint,
        suites=suites,
        seconds=round(seconds, 1),
    )


def tell_failure(folder: RunFolder, job: Job, suite: str, log: Path, most: int) -> None:
    """most: tries that a suite gets."""
    one = job.suites[suite]
    given_up = one.state is State.FAILED
    print_between(
        f"[{'red' if given_up else 'yellow'}]watch: {job.checkpoint}: {suite} failed, try {one.tries} of {most}, "
        f"{'given up' if given_up else 'tried again'}: {escape(one.error or '')} ({escape(str(log))})[/]"
    )
    append_event(
        folder,
        "evaluation_failed",
        checkpoint=job.checkpoint,
        suite=suite,
        tries=one.tries,
        given_up=given_up,
        error=one.error,
        log=str(log),
    )


def tell_given_up(folder: RunFolder, job: Job, suite: str) -> None:
    """Without another try: its checkpoint is no more."""
    one = job.suites[suite]
    print_between(f"[red]watch: {job.checkpoint}: {suite} given up: {escape(one.error or '')}[/red]")
    append_event(
        folder,
        "evaluation_failed",
        checkpoint=job.checkpoint,
        suite=suite,
        tries=one.tries,
        given_up=True,
        error=one.error,
    )


def tell_end(folder: RunFolder, stale_seconds: float) -> None:
    """How all of it stands; `WorldError` where something was given up."""
    jobs = jobs_below(folder.evaluation_jobs)
    states = [(job, suite, one) for job in jobs for suite, one in job.suites.items()]
    if away := [f"{suite} of {job.checkpoint}" for job, suite, one in states if one.state is State.UNTOLD]:
        told = f"watch: MLflow has not taken {', '.join(away)}: the same command sends it later"
        print_between(f"[yellow]{told}[/yellow]")
    if failed := [(job, suite, one) for job, suite, one in states if one.state is State.FAILED]:
        job, suite, one = failed[0]
        raise WorldError(
            f"watch: {len(failed)} of {len(states)} evaluations were given up, first {suite} of {job.checkpoint}: "
            f"{one.error}; --retry tries them again"
        )
    held = [job.checkpoint for job in jobs if is_held(folder.evaluation_jobs / job.checkpoint, stale_seconds)]
    rest = f"; others are at {', '.join(held)}" if held else ""
    print_between(f"watch: {sum(one.state is State.DONE for *_, one in states)} evaluations stand{rest}")
