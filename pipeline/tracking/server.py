"""The MLflow server or store: where it is, how it is reached, and what it accepts.

Importing mlflow takes two seconds and opening a new sqlite store two more, so only the functions that need it import
it - in the trainer that is the tracking thread, never the loop.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.durable import PARTIAL_SUFFIX, fsync_folder
from pipeline.errors import UserError
from pipeline.heavy_imports import heavy_imports

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

URI_VARIABLE = "MLFLOW_TRACKING_URI"
# What MLflow 3 accepts; more is refused, and one refused value refuses its whole batch.
METRICS_PER_BATCH = 1000
PARAMS_PER_BATCH = 100
NAME_LENGTH = 250
PARAM_LENGTH = 6000
TAG_LENGTH = 8000
DIGEST_LENGTH = 36
INPUT_TAG_LENGTH = 500

_SERVER_SCHEMES = ("http", "https", "databricks", "databricks-uc", "uc")
# Up to the last @: a password may hold any sign. Behind :/// comes the path of a file.
_USER_INFO = re.compile(r"(?<=://)(?!/)\S*@")
_QUERY = re.compile(r"(?<=\?)[^\s=]+=\S*")
DEFAULT_STORE = "sqlite:mlflow.db"
"""How the default store is noted: wherever the folder of all runs is moved, it is the same."""
_IMPORTING = threading.Lock()
_Item = TypeVar("_Item")


def tracking_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI, else the sqlite store mlflow.db in the folder of all runs."""
    return os.environ.get(URI_VARIABLE) or _default_uri(root)


def noted_uri(root: Path) -> str:
    """The tracking URI as it is noted in mlflow.json, without secrets."""
    uri = tracking_uri(root)
    return DEFAULT_STORE if uri == _default_uri(root) else without_secrets(uri)


def _default_uri(root: Path) -> str:
    return _uri_of(_default_store(root))


def _default_store(root: Path) -> Path:
    return root.absolute() / "mlflow.db"


def _uri_of(store: Path) -> str:
    return f"sqlite:///{store}"


def without_secrets(text: str) -> str:
    """`text` with user:password@ and query of every URI in it hidden; all that is printed or written passes here."""
    return _QUERY.sub("***", _USER_INFO.sub("***@", text))


def reason(error: BaseException) -> str:
    """The error's first line, without secrets and short enough for the console."""
    lines = str(error).strip().splitlines()
    return without_secrets(lines[0] if lines else type(error).__name__)[:300]


def import_mlflow() -> None:
    """Import MLflow with defaults of this project; each thread calls it before it takes anything out of MLflow.

    Its modules import each other in circles: of two threads that begin at two places, one would meet half a module.
    """
    with _IMPORTING, heavy_imports():
        _set_defaults()
        import mlflow  # noqa: F401


def _set_defaults() -> None:
    """What MLflow reads from the environment when it is imported."""
    # MLflow's own defaults retry for four minutes with two minutes a try; the tracker has its own, gentler patience.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    # Compute nodes have no way out, and a run is nobody else's business.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # At a run's end MLflow would print the run's address with the password that stands in the URI.
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"


def connect(root: Path) -> MlflowClient:
    """A client for `tracking_uri(root)`. A sqlite store is created here; a server is not yet asked anything."""
    import_mlflow()
    from mlflow.tracking import MlflowClient

    # Table creation, migrations and each failed try would be told on the console, a URI's password included; what
    # matters of it reaches the user through the tracker's one warning.
    for name in ("mlflow", "alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.ERROR)
    uri = tracking_uri(root)
    if uri == _default_uri(root):
        _make_store(_default_store(root))
    return MlflowClient(uri)


def _make_store(path: Path) -> None:
    """Make the sqlite store, where there is none, whole or not at all.

    MLflow needs two seconds for its tables, and refuses for good a store in which it was killed meanwhile.
    """
    if path.exists():
        return
    from mlflow.tracking import MlflowClient

    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems know no locks
            fcntl.flock(folder, fcntl.LOCK_EX)
        if not path.exists():  # another run was first
            partial = path.with_name(path.name + PARTIAL_SUFFIX)
            for left in path.parent.glob(f"{partial.name}*"):  # with its journal, of one that was killed
                left.unlink()
            MlflowClient(_uri_of(partial)).search_experiments()
            os.replace(partial, path)
            fsync_folder(path.parent)
    finally:
        os.close(folder)


def experiment_id(client: MlflowClient, root: Path, name: str) -> str:
    """The experiment's id; it is created where it is missing."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        # A server decides where artifacts go; a bare database would put them into ./mlruns of whoever calls.
        served = tracking_uri(root).split(":", 1)[0] in _SERVER_SCHEMES
        location = None if served else (root.absolute() / "mlartifacts").as_uri()
        try:
            return client.create_experiment(name, artifact_location=location)
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another run of this folder was first
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise UserError(f"the MLflow experiment {name!r} is deleted: restore it, or set track.experiment")
    return found.experiment_id


def clean_name(name: str) -> str:
    """A name that MLflow accepts: letters, digits, _ - . space : and the / of a plain relative path, else _."""
    text = re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)[:NAME_LENGTH]
    return "/".join(part for part in text.split("/") if part not in ("", ".", "..")) or "_"


def flat(content: Any, prefix: str = "") -> dict[str, str]:
    """Nested mappings and lists as params: {"train.phases.0.steps": "200", ...}, values cut to MLflow's limit."""
    if isinstance(content, dict) and content:
        parts = content.items()
    elif isinstance(content, list) and content:
        parts = enumerate(content)
    else:
        text = content if isinstance(content, str) else json.dumps(content)
        return {clean_name(prefix): text[:PARAM_LENGTH]}
    params: dict[str, str] = {}
    for key, value in parts:
        params.update(flat(value, f"{prefix}.{key}" if prefix else str(key)))
    return params


def batches(items: Sequence[_Item] | Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    """`items` in lists of at most `size`."""
    batch: list[_Item] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
