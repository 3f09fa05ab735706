"""COMPLETE: the last file of a checkpoint, with the size and SHA-256 of every other one.

What makes a folder a checkpoint, and what it is checked against. Sizes find what was cut short and cost nothing; hashes
find a flipped byte and cost one reading of the files.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from pipeline.command_line import cores
from pipeline.durable import sha256_file, write_text
from pipeline.errors import WorldError

MARKER = "COMPLETE"
SCHEMA_VERSION = 2
"""1, which had no such field: names and sizes alone."""
_READERS = 8
"""Files hashed at once; more threads than that only wait for the disk."""


class MarkedFile(BaseModel):
    """What a file was when the checkpoint became complete."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int
    """Bytes."""
    sha256: str | None = None
    """Hexadecimal; None in markers of schema 1."""

    @model_validator(mode="before")
    @classmethod
    def _of_schema_1(cls, content: Any) -> Any:
        return {"size": content} if isinstance(content, int) else content


class Marker(BaseModel):
    """The content of COMPLETE."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = 1
    files: dict[str, MarkedFile]
    """Every file but the marker, by its path below the checkpoint."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files.values())


def read_marker(checkpoint: Path) -> Marker:
    """The marker of the checkpoint in that folder; `WorldError` when it cannot be read."""
    try:
        marker = Marker.model_validate_json((checkpoint / MARKER).read_bytes())
    except (OSError, ValidationError) as error:
        raise WorldError(
            f"{checkpoint} is marked complete but cannot be read: {' '.join(str(error).split())}"
        ) from error
    if marker.schema_version > SCHEMA_VERSION:
        raise WorldError(
            f"{checkpoint / MARKER} is of schema {marker.schema_version}, this version knows {SCHEMA_VERSION}: it was "
            "written by a newer one, take that"
        )
    return marker


def write_marker(checkpoint: Path, files: dict[str, MarkedFile]) -> None:
    """Make the folder a checkpoint of these files."""
    marker = Marker(schema_version=SCHEMA_VERSION, files=dict(sorted(files.items())))
    write_text(checkpoint / MARKER, marker.model_dump_json(indent=2) + "\n")


def measured(path: Path) -> MarkedFile:
    """Size and hash of a file as it is on disk."""
    return MarkedFile(size=path.stat().st_size, sha256=sha256_file(path))


def wrong_sizes(checkpoint: Path, marker: Marker) -> list[str]:
    """A line for each file that is missing or of another size than its marker says; no file is opened."""
    return [found for name, file in marker.files.items() if (found := _wrong_size(checkpoint / name, file)) is not None]


def wrong_files(checkpoint: Path, marker: Marker, names: Iterable[str] | None = None) -> list[str]:
    """A line for each file, of those with `names` or of all, that is not what its marker says; reads them whole.

    Files of schema 1 are compared by size. Raises OSError when a file is there but the file system does not give it.
    """
    chosen = [name for name in marker.files if name in set(names)] if names is not None else list(marker.files)
    if not chosen:
        return []
    with ThreadPoolExecutor(min(_READERS, cores(), len(chosen))) as readers:
        found = readers.map(lambda name: _wrong(checkpoint / name, marker.files[name]), chosen)
        return [line for line in found if line is not None]


def _wrong(path: Path, file: MarkedFile) -> str | None:
    by_size = _wrong_size(path, file)
    if by_size is not None or file.sha256 is None:
        return by_size
    try:
        found = sha256_file(path)
    except OSError as error:
        if error.errno != errno.EIO:  # not the file's fault: a server away, no permission
            raise
        return f"{path} is damaged: {error.strerror}"
    if found != file.sha256:
        return f"{path} is damaged: its sha256 is {found[:12]}, the marker says {file.sha256[:12]}"
    return None


def _wrong_size(path: Path, file: MarkedFile) -> str | None:
    try:
        size = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return f"{path} is missing: the marker says {file.size} bytes"
    return None if size == file.size else f"{path} is damaged: it has {size} bytes, the marker says {file.size}"
