"""provenance.json: what a release was made from, and the hash of each of its files."""

from __future__ import annotations

import hashlib
import re
import shlex
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.durable import sha256_file, write_text
from pipeline.errors import WorldError
from pipeline.evaluation.metrics import Metrics

PROVENANCE_NAME = "provenance.json"
REVISIONS = "revisions"
"""Folder below a release with those of intermediate steps."""
_URL = r"[A-Za-z][A-Za-z0-9+.:-]*://"
_PLACE = re.compile(rf"[/~]|{_URL}")
# Also behind --option= and inside the lists and mappings that --set takes. A query may hold any sign but a space.
_PLACE_IN_A_WORD = re.compile(
    rf"""(?:^|(?<=[=\[{{,\s'"]))(?:[/~][^=,\]}}'"]*|{_URL}[^\s?,\]}}'"]*(?:\?[^\s\]}}'"]*)?)"""
)


class ReleaseIdentity(BaseModel):
    """What decides the content of a release."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int
    save_id: str
    """The checkpoint's: tells its weights from others of the same step and recipe."""
    recipe_hash: str
    """The recipe that trained the checkpoint."""
    manifest_hash: str
    dtype: Literal["float32", "bfloat16"]
    license: str
    max_shard_bytes: int | None = None
    """Null in releases from before the weights came in several files."""


class BaselineResult(BaseModel):
    """What a baseline's evaluation on validation sets found over all of them."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")

    name: str
    """As the recipe calls it."""
    run: str
    """Name of its run."""
    step: int
    recipe_hash: str
    manifest_hash: str
    settings: dict[str, Any]
    """Of the evaluation: others than the release's are on other rows."""
    metrics_sha256: str
    """Of the metrics.json that the numbers are from."""
    tokens: int
    """Predicted."""
    loss: float
    perplexity: float
    bits_per_byte: float
    mean_depth: float


class Provenance(BaseModel):
    """The content of provenance.json."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")

    schema_version: Literal[1] = 1
    name: str
    identity: ReleaseIdentity
    recipe: dict[str, Any]
    """Resolved, as the checkpoint was trained, `without_folders`; the identity's hash is of the whole one."""
    rows: int
    """Rows of the training set consumed."""
    tokens: int
    """Tokens of the training set predicted."""
    phase: str
    parameters: int
    metrics: Metrics | None
    """The evaluation of this checkpoint; null where there was none."""
    baselines: list[BaselineResult] = []
    """What the card sets beside it."""
    mlflow_run_id: str | None
    trained_with: dict[str, str]
    """Versions at training."""
    released_with: dict[str, str]
    command: str
    """The command that made the release, paths as in `recipe`."""
    load_difference: float
    """Largest difference of a logit, both in fp32: the weights rounded for release, and the release loaded afresh."""
    decoding_difference: float | None = None
    """Largest difference of a logit, both in fp32: the weights rounded for release by the plain path, and the release
    loaded afresh as it is used, from its cache and skipping halted tokens; null in releases from before there was one.
    """
    rounding_difference: float
    """Largest difference of a logit, both in fp32: the training's own weights, and those rounded for release."""
    depth_difference: float | None = None
    """The same as `load_difference` and `decoding_difference`, whichever is larger, with every token at one depth: the
    largest over depths 1..K; null in releases from before there was one."""
    files: dict[str, str]
    """SHA-256 of every other file of the release."""
    own_sha256: str | None = None
    """Of this very file with these letters left out, so that a change in it is seen too; null in older releases."""


def without_folders(content: Any) -> Any:
    """A recipe, or any part of one, with absolute paths and URLs reduced to their last name.

    Where things lay for the training means nothing elsewhere, and is nobody's business; least of all a password or a
    signed query in a URL.
    """
    if isinstance(content, dict):
        return {name: without_folders(value) for name, value in content.items()}
    if isinstance(content, list):
        return [without_folders(value) for value in content]
    return _last_name(content) if isinstance(content, str) and _PLACE.match(content) else content


def command_without_folders(command: str) -> str:
    """A command line, as `shlex.join` makes it, with absolute paths and URLs reduced to their last name."""
    words = shlex.split(command)
    return shlex.join(_PLACE_IN_A_WORD.sub(lambda found: _last_name(found[0]), word) for word in words)


def _last_name(place: str) -> str:
    if "://" in place:
        # A host alone keeps its name, without who logs in there.
        return re.split("[?#]", place)[0].rstrip("/").rpartition("/")[2].rpartition("@")[2]
    return Path(place).name or place


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a release but its provenance, by name; `revisions/` are releases of their own."""
    paths = sorted(path for path in folder.iterdir() if path.name not in (PROVENANCE_NAME, REVISIONS))
    return {path.name: sha256_file(path) for path in paths}


def write_provenance(folder: Path, provenance: Provenance) -> None:
    """Write it with the hash of itself."""
    text = provenance.model_copy(update={"own_sha256": ""}).model_dump_json(indent=2) + "\n"
    own = hashlib.sha256(text.encode()).hexdigest()
    written = provenance.model_copy(update={"own_sha256": own}).model_dump_json(indent=2) + "\n"
    write_text(folder / PROVENANCE_NAME, written)


def is_as_written(content: bytes, provenance: Provenance) -> bool:
    """Whether the bytes of provenance.json are those that were written; of older releases nothing is known."""
    if provenance.own_sha256 is None:
        return True
    without = b"".join(content.rsplit(provenance.own_sha256.encode(), 1))
    return hashlib.sha256(without).hexdigest() == provenance.own_sha256


def read_provenance(folder: Path) -> Provenance | None:
    """The provenance of the release in `folder`; None where there is none; `WorldError` when it is damaged."""
    path = folder / PROVENANCE_NAME
    try:
        return Provenance.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise WorldError(f"{path} is damaged: remove {folder} and release again") from error
