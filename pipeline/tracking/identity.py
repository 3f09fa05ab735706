"""mlflow.json: which MLflow run belongs to a run folder, and the lock that keeps its writers apart.

A folder has one MLflow run in each store and experiment that it was tracked in, so that one who goes back to a store
finds the run there. The file is written before the MLflow run is created, with a key that the run carries as a tag: a
process killed between creating the run and noting its id finds it again by the key, and no second run appears.
"""

from __future__ import annotations

import fcntl
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.durable import write_text
from pipeline.errors import WorldError
from pipeline.run_folder import RunFolder

EndStatus = Literal["FINISHED", "FAILED", "KILLED"]
WriterLock = Literal["held", "busy", "unsupported"]

# A tracker that hangs on a dead server may wake up while the main thread notes the end.
_one_thread = threading.Lock()


class Identity(BaseModel):
    """The run of a folder in one store and experiment."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    uri: str
    """Where the run is kept, without secrets; `server.DEFAULT_STORE` for the store beside the run folders."""
    experiment: str
    key: str
    """Tag `adaponder.key` of the MLflow run."""
    run_id: str | None = None
    """None until the server has answered."""
    attempt: int
    """The newest start of the training."""
    status: EndStatus | None = None
    """How the newest attempt ended; None while it runs, or when it was killed."""


class _Noted(BaseModel):
    """The content of mlflow.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    runs: list[Identity] = Field(min_length=1)
    """The one tracked last stands last."""


def identity_file(folder: RunFolder) -> Path:
    return folder.path / "mlflow.json"


def new_identity(uri: str, experiment: str, attempt: int, status: EndStatus | None = None) -> Identity:
    return Identity(uri=uri, experiment=experiment, key=uuid.uuid4().hex, attempt=attempt, status=status)


def read_identity(folder: RunFolder) -> Identity | None:
    """The run where it was tracked last; None where nothing was tracked yet; `WorldError` for a damaged file."""
    noted = _read(folder)
    return noted.runs[-1] if noted else None


def identity_at(folder: RunFolder, uri: str, experiment: str) -> Identity | None:
    """The run in one store's experiment; None where this folder was never tracked there."""
    noted = _read(folder)
    runs = noted.runs if noted else []
    return next((run for run in runs if (run.uri, run.experiment) == (uri, experiment)), None)


def write_identity(folder: RunFolder, identity: Identity) -> None:
    """Note the run as the one tracked last, in the place of what was noted for its store and experiment."""
    with _one_thread:
        _write(folder, identity)


def note_status(folder: RunFolder, status: EndStatus) -> None:
    """Note how the newest attempt ended, for the case that the server could not be told."""
    with _one_thread:
        noted = read_identity(folder)
        if noted is not None:
            _write(folder, noted.model_copy(update={"status": status}))


def _read(folder: RunFolder) -> _Noted | None:
    path = identity_file(folder)
    try:
        return _Noted.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise WorldError(f"{path} is damaged: remove it, and the run gets a new MLflow run") from error


def _write(folder: RunFolder, identity: Identity) -> None:
    noted = _read(folder)
    place = (identity.uri, identity.experiment)
    others = [run for run in noted.runs if (run.uri, run.experiment) != place] if noted else []
    write_text(identity_file(folder), _Noted(runs=[*others, identity]).model_dump_json(indent=2) + "\n")


@contextmanager
def only_writer(folder: RunFolder) -> Iterator[WriterLock]:
    """An exclusive lock until the block ends: whether this process alone now feeds the folder's MLflow run.

    "held": it does. "busy": another process does. "unsupported": the file system knows no locks; then the only sign
    that a training is over is the end that it noted. The kernel frees the lock however the process ends.
    """
    path = folder.path / "mlflow.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock: WriterLock = "held"
        except BlockingIOError:
            lock = "busy"
        except OSError:
            lock = "unsupported"
        yield lock
