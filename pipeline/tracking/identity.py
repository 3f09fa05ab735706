"""mlflow.json: which MLflow run belongs to a run folder, and the lock that keeps its writers apart.

The file is written before the MLflow run is created, with a key that the run carries as a tag: a process killed
between creating the run and noting its id finds it again by the key, and no second run appears.
"""

from __future__ import annotations

import fcntl
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.durable import write_text
from pipeline.errors import WorldError
from pipeline.run_folder import RunFolder

EndStatus = Literal["FINISHED", "FAILED", "KILLED"]

# A tracker that hangs on a dead server may wake up while the main thread notes the end.
_one_thread = threading.Lock()


class Identity(BaseModel):
    """The content of mlflow.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    uri: str
    """Where the run is kept, without secrets."""
    experiment: str
    key: str
    """Tag `adaponder.key` of the MLflow run."""
    run_id: str | None = None
    """None until the server has answered."""
    attempt: int
    """The newest start of the training."""
    status: EndStatus | None = None
    """How the newest attempt ended; None while it runs, or when it was killed."""


def identity_file(folder: RunFolder) -> Path:
    return folder.path / "mlflow.json"


def new_identity(uri: str, experiment: str, attempt: int) -> Identity:
    return Identity(uri=uri, experiment=experiment, key=uuid.uuid4().hex, attempt=attempt)


def read_identity(folder: RunFolder) -> Identity | None:
    """The run's identity; None where nothing was tracked yet; `WorldError` for a damaged file."""
    path = identity_file(folder)
    try:
        return Identity.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise WorldError(f"{path} is damaged: remove it, and the run gets a new MLflow run") from error


def write_identity(folder: RunFolder, identity: Identity) -> None:
    with _one_thread:
        write_text(identity_file(folder), identity.model_dump_json(indent=2) + "\n")


def note_status(folder: RunFolder, status: EndStatus) -> None:
    """Note how the newest attempt ended, for the case that the server could not be told."""
    noted = read_identity(folder)
    if noted is not None:
        write_identity(folder, noted.model_copy(update={"status": status}))


@contextmanager
def only_writer(folder: RunFolder) -> Iterator[bool]:
    """Whether this process alone now feeds the folder's MLflow run: an exclusive lock, until the block ends.

    The kernel frees it however the process ends. Where the file system knows no locks the answer is no, so that two
    jobs never send the same metrics; training, which is the first to write, goes on without.
    """
    path = folder.path / "mlflow.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
        except OSError:
            alone = False
        yield alone
