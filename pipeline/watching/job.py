"""job.json: what is known of the judgement of one checkpoint, for the watchers and for `adaponder status`.

Whoever holds the checkpoint's claim writes it, nobody else. Results themselves are what decides whether something is
done; what only this file knows are failed tries and the job that was submitted.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.durable import write_new, write_text
from pipeline.errors import WorldError

_NAME = "job.json"


class State(str, Enum):
    """How far a suite is on a checkpoint."""

    WAITING = "waiting"
    RUNNING = "running"
    UNTOLD = "judged, not in MLflow"
    DONE = "done"
    FAILED = "failed"


class SuiteJob(BaseModel):
    """One suite on the checkpoint."""

    model_config = ConfigDict(extra="forbid")

    state: State = State.WAITING
    tries: int = 0
    """Those that failed."""
    error: str | None = None
    """Of the last try that failed."""


class Job(BaseModel):
    """The judgement of one checkpoint."""

    model_config = ConfigDict(extra="forbid")

    checkpoint: str
    save_id: str
    """Tells the checkpoint from another one of that step: what failed on that says nothing of this."""
    suites: dict[str, SuiteJob]
    submitted: str | None = None
    """The name of the Slurm job or Kubernetes Job that was asked for and whose end nobody has seen."""
    submitted_suites: list[str] = []
    """What that one judges, in its order."""
    log: str | None = None
    """Of the last try."""


def read_job(folder: Path) -> Job | None:
    """None where there is none yet; `WorldError` for a damaged file."""
    path = folder / _NAME
    try:
        return Job.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise WorldError(f"{path} is damaged: remove it, and the checkpoint is judged as a new one") from error


def create_job(folder: Path, job: Job) -> None:
    """Put a job there that everybody sees; leaves the one that there is."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / _NAME).exists():
        write_new(folder / _NAME, job.model_dump_json(indent=2) + "\n")


def write_job(folder: Path, job: Job) -> None:
    write_text(folder / _NAME, job.model_dump_json(indent=2) + "\n")


def jobs_below(folder: Path) -> list[Job]:
    """All of a run, oldest first."""
    found = [read_job(path) for path in sorted(folder.glob("step-*")) if path.is_dir()]
    return [job for job in found if job is not None]
