"""The files that a recipe's names and patterns stand for, and what tells that one of them has changed.

Every source that reads files here finds them in this one way, so that the same mistake gets the same answer.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import UserError, WorldError


def find_files(patterns: Sequence[str], suffixes: tuple[str, ...]) -> list[Path]:
    """The files that names and glob patterns stand for, absolute, in sorted order, each once.

    Raises `UserError` with everything that is not there or has none of the `suffixes`, `WorldError` for a file that
    cannot be opened. What a file holds is for its reader to check.
    """
    found: set[Path] = set()
    problems: list[str] = []
    for pattern in patterns:
        literal = Path(pattern).expanduser()
        if literal.is_file():
            matches = [literal]
        else:
            matches = [Path(name) for name in glob.glob(str(literal), recursive=True) if Path(name).is_file()]
        if not matches:
            kind = "no file matches this pattern" if glob.has_magic(pattern) else "no such file"
            problems.append(f"{pattern}: {kind}")
        for path in matches:
            if not path.name.endswith(suffixes):
                problems.append(f"{path}: a name that ends in {', '.join(suffixes)} is expected")
            else:
                found.add(path.absolute())
    if problems:
        raise UserError("; ".join(problems))
    files = sorted(found)
    for path in files:
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise WorldError(f"{path} cannot be read: {error.strerror}") from error
    return files


def file_identity(*paths: Path) -> str:
    """Sizes and modification times: changes when one of the files does. Raises `WorldError` where one is gone."""
    parts = []
    for path in paths:
        try:
            status = os.stat(path)
        except OSError as error:
            raise WorldError(f"{path} cannot be read: {error.strerror}") from error
        parts.append(f"{status.st_size}:{status.st_mtime_ns}")
    return " ".join(parts)


def check_unchanged(identity: str, *paths: Path) -> None:
    """Raises `WorldError` where the files are not those that had `identity` when the work was planned."""
    if file_identity(*paths) != identity:
        raise WorldError(f"{paths[0]} has changed since the work on it was planned: start again")
