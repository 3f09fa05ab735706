"""Where a run stands, read from its folder alone: nothing is asked of the training, which may be on other hosts.

What `adaponder status` and `adaponder logs` show.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import re
import statistics
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from launch.preflight.failures import failures_in
from pipeline.checkpoint import complete_folders, open_checkpoint
from pipeline.checkpoint_lock import reading
from pipeline.checkpoint_marker import wrong_files
from pipeline.errors import UserError, WorldError
from pipeline.recipe import Recipe
from pipeline.recipe_reader import read_recipe
from pipeline.run_folder import RunFolder, runs_root
from pipeline.silent_ranks import without_a_word
from pipeline.tracking.metrics_lines import MetricsLine, read_metrics
from pipeline.training.attempt import first_told, one_line, reports
from pipeline.watching.overview import EvaluationJob, evaluation_jobs

_SPEED_LINES = 50
"""Logged steps whose median is the speed that the rest is expected to go at."""
_TAIL_BYTES = 1 << 20
_LOG = re.compile(r"attempt-(\d+)-(rank-(\d+)|launcher)\.log")
_ENDS = {
    "training_finished": "finished",
    "training_stopped": "stopped",
    "training_failed": "failed",
    "training_hung": "hung",
}


@dataclass
class Attempt:
    """One start of the run's training."""

    number: int
    started: str | None = None
    """UTC, ISO 8601."""
    first_step: int | None = None
    ranks: int | None = None
    hosts: dict[str, list[int]] = field(default_factory=dict)
    """The ranks on each."""
    ended: str | None = None
    """finished, stopped, failed or hung; None where nothing was noted: it runs, or was killed."""
    message: str | None = None


@dataclass
class Failure:
    """The last error that was noted, and whose it is."""

    attempt: int
    rank: int | None
    host: str | None
    time: str
    message: str


@dataclass
class Status:
    """Where a run stands."""

    folder: str
    state: str
    """not started, training, finished, stopped, failed, hung, killed, or unknown where the file system has no locks."""
    attempts: list[Attempt] = field(default_factory=list)
    step: int = 0
    steps: int = 0
    tokens: int = 0
    total_tokens: int = 0
    loss: float | None = None
    mean_depth: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    """Training time of the steps that are left, at the speed of the last ones."""
    age_seconds: float | None = None
    """Since the last step was logged."""
    checkpoint: str | None = None
    checkpoint_state: str | None = None
    """whole, or what is wrong with it."""
    evaluations: list[str] = field(default_factory=list)
    """step-00001000/suite, those that are done."""
    jobs: list[EvaluationJob] = field(default_factory=list)
    """What `adaponder watch` has in hand, and what became of it."""
    released: bool = False
    failure: Failure | None = None
    preflight: str | None = None
    """When the last one was made, and what failed in it."""

    def as_json(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)


def run_of(run: str, runs: Path | None) -> RunFolder:
    """A run given by its folder or its name; `UserError` where there is none."""
    for path in (Path(run).expanduser().absolute(), runs_root(runs) / run):
        # Of a run that was launched and has not trained yet, the launch has the recipe.
        for recipe in (path / "recipe.yaml", *sorted(path.glob("launch/*/recipe.yaml"))):
            if recipe.is_file():
                return RunFolder(path.parent, read_recipe(str(recipe)))
    raise UserError(f"{run}: neither a run's folder with recipe.yaml in it nor the name of one in {runs_root(runs)}")


def status_of(folder: RunFolder, *, hashes: bool = False) -> Status:
    """Read the folder. hashes: compare every file of the newest checkpoint with its hash, not sizes alone."""
    status = Status(str(folder.path), "not started")
    recipe = folder.recipe
    status.steps, status.total_tokens = recipe.train.steps, recipe.train.steps * recipe.tokens_per_step
    status.attempts = _attempts(folder)
    _progress(status, folder, recipe)
    _checkpoint(status, folder, hashes)
    status.evaluations = sorted(
        str(path.parent.relative_to(folder.path / "evaluation"))
        for path in (folder.path / "evaluation").glob("step-*/*/metrics.json")
        if "." not in path.parent.name  # whole, but not under its name yet
    )
    status.jobs = evaluation_jobs(folder)
    status.preflight = _preflight(folder)
    status.released = (folder.release / "provenance.json").is_file()
    if status.attempts:
        last = status.attempts[-1]
        alive = _alive(folder)
        status.state = last.ended or alive
        if last.ended is not None and alive == "training":  # another has begun and noted nothing yet
            status.state = "training"
        status.failure = _failure(folder, status.attempts, alive == "training")
    return status


def log_file(folder: RunFolder, rank: int | None, attempt: int | None) -> Path:
    """The log of a rank (None: of the launcher), of the newest attempt that has one or of the given one.

    Raises `UserError` saying which there are.
    """
    known: dict[tuple[int, int | None], Path] = {}
    for path in folder.logs.glob("attempt-*.log"):
        if match := _LOG.fullmatch(path.name):
            known[int(match[1]), None if match[3] is None else int(match[3])] = path
    of_rank = sorted(number for number, whose in known if whose == rank)
    if of_rank and (attempt is None or attempt in of_rank):
        return known[attempt or of_rank[-1], rank]
    who = "the launcher" if rank is None else f"rank {rank}"
    if not known:
        raise UserError(f"{folder.logs} holds no log: nothing was trained yet")
    attempts = sorted({number for number, _ in known})
    ranks = sorted({whose for number, whose in known if whose is not None and number == (attempt or attempts[-1])})
    raise UserError(
        f"{folder.logs} holds no log of {who}" + (f" in attempt {attempt}" if attempt else "") + ": there are attempts "
        f"{attempts[0]} to {attempts[-1]}, and ranks {', '.join(map(str, ranks[:8])) or 'none'}"
        + (" ..." if len(ranks) > 8 else "")
    )


def last_lines(path: Path, count: int) -> list[str]:
    """The file's last lines, of its last megabyte."""
    with open(path, "rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - _TAIL_BYTES))
        return file.read().decode(errors="replace").splitlines()[-count:]


def _events(folder: RunFolder) -> list[dict[str, Any]]:
    """Complete lines of events.jsonl; one that a killed process left unfinished says nothing."""
    if not folder.events_file.is_file():
        return []
    found = []
    for line in folder.events_file.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def _attempts(folder: RunFolder) -> list[Attempt]:
    numbers = {int(match[1]) for path in folder.logs.glob("*.log") if (match := _LOG.fullmatch(path.name))}
    found = {number: Attempt(number) for number in numbers}
    for event in _events(folder):
        number = event.get("attempt")
        if number is None:
            continue
        attempt = found.setdefault(number, Attempt(number))
        if event["kind"] == "training_started":
            attempt.started, attempt.first_step = event["time"], event["step"]
            attempt.ranks, attempt.hosts = event["world_size"], event.get("hosts", {})
        elif event["kind"] in _ENDS:
            attempt.ended = _ENDS[event["kind"]]
            attempt.message = event.get("message") or event.get("error")
    return [found[number] for number in sorted(found)]


def _progress(status: Status, folder: RunFolder, recipe: Recipe) -> None:
    lines: deque[MetricsLine] = deque(read_metrics(folder.metrics_file), maxlen=_SPEED_LINES)
    if not lines:
        return
    last = lines[-1]
    status.step, status.tokens = last.step, last.step * recipe.tokens_per_step
    status.loss, status.mean_depth = last.metrics.get("train/loss"), last.metrics.get("depth/mean")
    status.age_seconds = round(time.time() - last.time_ms / 1000, 1)
    seconds = [line.metrics["speed/step_seconds"] for line in lines if "speed/step_seconds" in line.metrics]
    if seconds:
        median = statistics.median(seconds)
        status.tokens_per_second = round(recipe.tokens_per_step / median, 1)
        status.seconds_left = round((status.steps - status.step) * median, 1)


def _checkpoint(status: Status, folder: RunFolder, hashes: bool) -> None:
    paths = complete_folders(folder.checkpoints)
    if not paths:
        return
    status.checkpoint = paths[-1].name
    try:
        with reading(paths[-1]):
            opened = open_checkpoint(paths[-1])
            wrong = wrong_files(opened.path, opened.marker) if hashes else []
        status.checkpoint_state = wrong[0] if wrong else "whole" if hashes else "whole by its files' sizes"
    except WorldError as error:
        status.checkpoint_state = str(error)


def _failure(folder: RunFolder, attempts: list[Attempt], going_on: bool) -> Failure | None:
    """Of the newest attempt in which a rank left an error, or that ranks ended in which left nothing at all."""
    for attempt in reversed(attempts):
        told = reports(folder.logs, attempt.number)
        first = first_told(told)
        if told and (first is None or first["kind"] == "lost") and not (going_on and attempt is attempts[-1]):
            # Whoever lost them says why; whose error it is, those say by leaving nothing.
            silent = next(iter(without_a_word(attempt.hosts, told)), None)
            first = {**silent, "message": first["message"]} if silent and first else first or silent
        if first:
            when = datetime.fromtimestamp(first["time"]).astimezone().isoformat(timespec="seconds")
            return Failure(attempt.number, first["rank"], first["host"], when, one_line(first))
    return None


def _preflight(folder: RunFolder) -> str | None:
    with contextlib.suppress(OSError, ValueError, KeyError):
        found = json.loads(folder.preflight_file.read_text(encoding="utf-8"))
        return f"{found['time']}, {'passed' if found['passed'] else '; '.join(failures_in(found))}"
    return None


def _alive(folder: RunFolder) -> str:
    """Whether a process holds the run, by the lock that rank 0 keeps as long as it lives."""
    lock = folder.path / "training.lock"
    if not lock.is_file():
        return "not started"
    try:
        with open(lock, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return "training"
    except OSError:
        return "unknown"
    return "killed"
