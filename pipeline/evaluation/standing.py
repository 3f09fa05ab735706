"""What of an evaluation is done: judged, and told to MLflow."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.durable import sha256_json, write_text
from pipeline.errors import WorldError
from pipeline.evaluation.identity import Identity
from pipeline.evaluation.suite import METRICS_NAME

_TOLD_SUFFIX = ".told"


class Standing(str, Enum):
    MISSING = "missing"
    """No judgement, or another one than is wanted."""
    UNTOLD = "untold"
    """Judged; MLflow was away."""
    DONE = "done"


class _Found(BaseModel):
    """Of any suite's metrics.json."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    identity: Identity


def standing(output: Path, save_id: str, settings: dict[str, Any]) -> Standing:
    """How far a suite with these settings has come, on the checkpoint with that `save_id`, whose folder is `output`.

    The save_id alone tells the checkpoint from all others, so that this is known of one that was removed since. A file
    that cannot be read is no judgement: `adaponder evaluate` says what is wrong with it.
    """
    try:
        found = _Found.model_validate_json((output / METRICS_NAME).read_bytes()).identity
    except (FileNotFoundError, ValidationError):
        return Standing.MISSING
    if (found.save_id, found.settings) != (save_id, settings):
        return Standing.MISSING
    try:
        told = _told_file(output).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return Standing.UNTOLD
    return Standing.DONE if told == _digest(found) else Standing.UNTOLD


def note_told(output: Path, identity: Identity) -> None:
    """MLflow has all of it."""
    write_text(_told_file(output), _digest(identity) + "\n")


def _told_file(output: Path) -> Path:
    # Beside the folder: all files inside belong to the judgement.
    return output.with_name(output.name + _TOLD_SUFFIX)


def _digest(identity: Identity) -> str:
    return sha256_json(identity.model_dump(mode="json"))


def read_found(folder: Path, found: type[BaseModel]) -> Any:
    """The evaluation that stands in `folder`; None where none was finished; `WorldError` for a damaged file."""
    path = folder / METRICS_NAME
    try:
        return found.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise WorldError(f"{path} is damaged, or of another version: remove it and evaluate again") from error
