"""What a failure of tracking is told as: the server is blamed for its own errors only."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import AdaPonderError
from pipeline.tracking.server import reason, tracking_uri, without_secrets

# Told by name: importing them all takes seconds, and an artifact store raises its own library's errors.
_OF_THE_SERVER = {"mlflow", "requests", "urllib3", "sqlalchemy", "sqlite3", "botocore", "boto3", "google", "azure"}


@dataclass(frozen=True)
class Failure:
    """Why something was not sent, without secrets."""

    message: str
    """One line without an end, to which the caller adds what follows from it."""
    traceback: str | None
    """Of an error that nobody foresaw."""

    def fields(self) -> dict[str, str]:
        """For events.jsonl."""
        return {} if self.traceback is None else {"traceback": self.traceback}


def failure_of(error: Exception, what: str, root: Path) -> Failure:
    """Tell the failed sending of `what` to the MLflow of the folder of all runs `root`."""
    if isinstance(error, AdaPonderError):
        return Failure(f"{without_secrets(str(error))}; MLflow does not get the {what}", None)
    if isinstance(error, OSError) or _OF_THE_SERVER & {kind.__module__.split(".")[0] for kind in type(error).__mro__}:
        where = without_secrets(tracking_uri(root))
        return Failure(f"MLflow at {where} does not take the {what} ({reason(error)})", None)
    lines = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return Failure(
        f"MLflow does not get the {what}: {type(error).__name__}, {reason(error)} (the traceback is in events.jsonl)",
        without_secrets(lines),
    )
