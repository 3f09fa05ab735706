"""A run's status as a person reads it."""

from __future__ import annotations

from collections import Counter

from rich.markup import escape
from rich.table import Table

from pipeline.console import console
from pipeline.run_status import Status


def tell(status: Status) -> None:
    """Print it."""
    table = Table(show_header=False, box=None, pad_edge=False, title=status.folder, title_justify="left")
    table.add_column(style="bold")
    table.add_column()
    for name, text in _rows(status):
        table.add_row(name, escape(text))
    console.print(table, highlight=False)


def _rows(status: Status) -> list[tuple[str, str]]:
    share = status.step / status.steps if status.steps else 0.0
    rows = [("state", status.state)]
    if status.preflight:
        rows.append(("preflight", status.preflight))
    for attempt in status.attempts[-3:]:
        told = "started" if attempt.started is None else f"{attempt.started} from step {attempt.first_step:,}"
        ranks = "" if attempt.ranks is None else f" on {attempt.ranks} ranks"
        end = (
            "" if attempt.ended is None else f"; {attempt.ended}" + (f": {attempt.message}" if attempt.message else "")
        )
        rows.append((f"attempt {attempt.number}", f"{told}{ranks}{end}"))
    rows.append(("step", f"{status.step:,} of {status.steps:,} ({share:.1%})"))
    rows.append(("tokens", f"{status.tokens:,} of {status.total_tokens:,}"))
    if status.loss is not None:
        depth = "" if status.mean_depth is None else f", mean depth {status.mean_depth:.3f}"
        rows.append(("loss", f"{status.loss:.4f}{depth}"))
    if status.tokens_per_second is not None and status.seconds_left is not None:
        left = "" if status.step >= status.steps else f"; {duration(status.seconds_left)} left"
        rows.append(("speed", f"{status.tokens_per_second:,.0f} tokens/s{left}"))
    if status.age_seconds is not None and status.state != "finished":
        rows.append(("last step logged", f"{duration(status.age_seconds)} ago"))
    saved = "none" if status.checkpoint is None else f"{status.checkpoint}, {status.checkpoint_state}"
    rows.append(("last checkpoint", saved))
    rows.append(("evaluations", ", ".join(status.evaluations) or "none"))
    rows += _job_rows(status)
    rows.append(("release", "made" if status.released else "none"))
    if status.failure:
        failure = status.failure
        rows.append(
            (
                "last error",
                f"attempt {failure.attempt}, rank {failure.rank} on {failure.host}, {failure.time}: {failure.message}",
            )
        )
    return rows


def _job_rows(status: Status) -> list[tuple[str, str]]:
    """How many evaluations are in which state; those that failed or are being made, one by one."""
    if not status.jobs:
        return []
    counts = Counter(job.state for job in status.jobs)
    rows = [("evaluation jobs", ", ".join(f"{count} {state}" for state, count in counts.items()))]
    for job in status.jobs:
        if job.state == "failed" or (job.error and job.state != "done"):
            told = f"{job.state} after {job.tries} tries: {job.error} ({job.log})"
        elif job.state == "running":
            told = f"running, watched by {job.holder}"
        else:
            continue
        rows.append((f"  {job.checkpoint}", f"{job.suite} {told}"))
    return rows


def duration(seconds: float) -> str:
    """In the two largest units."""
    whole = round(seconds)
    days, rest = divmod(whole, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, left = divmod(rest, 60)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (left, "s")]
    told = [f"{count} {unit}" for count, unit in parts if count]
    return " ".join(told[:2]) or "0 s"
