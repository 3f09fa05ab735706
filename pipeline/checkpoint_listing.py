"""What `adaponder checkpoint list` and `verify` show of a run."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from pipeline.checkpoint import DAMAGED_SUFFIX, complete_folders, find_checkpoint, open_checkpoint
from pipeline.checkpoint_lock import REMOVED_SUFFIX, reading
from pipeline.checkpoint_marker import MARKER, wrong_files
from pipeline.console import console
from pipeline.durable import PARTIAL_SUFFIX
from pipeline.errors import UserError, WorldError
from pipeline.run_folder import runs_root

_NO_CHECKPOINT = {
    PARTIAL_SUFFIX: "half written; the next training removes it",
    REMOVED_SUFFIX: "half removed; the next training removes the rest",
    DAMAGED_SUFFIX: "set aside: training could not continue from it",
}


@dataclass(frozen=True)
class Listed:
    """One folder of checkpoints/."""

    name: str
    state: str
    """complete, or what is wrong."""
    complete: bool
    """Whether it is a checkpoint and its files have the sizes of its marker."""
    step: int | None
    phase: str | None
    tokens: int | None
    bytes: int
    """Of all files."""
    world_size: int | None
    zero_stage: int | None
    precision: str | None
    age_seconds: float
    """Since it was complete; of one that is not, since its folder last changed."""


def checkpoints_of(run: str, runs: Path | None) -> Path:
    """The checkpoints of a run, given by its folder or its name; `UserError` when there are none."""
    for folder in (Path(run).expanduser(), runs_root(runs) / run):
        if (folder / "checkpoints").is_dir():
            return (folder / "checkpoints").absolute()
    raise UserError(f"{run}: neither a run's folder with checkpoints/ in it nor the name of one in {runs_root(runs)}")


def listed(folder: Path) -> list[Listed]:
    """Everything in a run's checkpoints/ that is or was meant to be a checkpoint, by name."""
    found = []
    for path in sorted(folder.glob("step-*")):
        with contextlib.suppress(FileNotFoundError):  # renamed or removed by a training meanwhile
            if path.is_dir():
                found.append(_listed(path))
    return found


def list_and_tell(run: str, runs: Path | None, as_json: bool) -> None:
    """Print the list as a table, or as JSON on stdout."""
    folder = checkpoints_of(run, runs)
    found = listed(folder)
    if as_json:
        print(json.dumps([asdict(one) for one in found], indent=2, ensure_ascii=False))
        return
    table = Table(title=str(folder), title_justify="left")
    for column in ("checkpoint", "phase", "tokens", "size", "ranks", "ZeRO", "precision", "age", "state"):
        table.add_column(column, justify="right" if column in ("tokens", "size", "ranks", "ZeRO", "age") else "left")
    for one in found:
        table.add_row(
            one.name,
            _text(one.phase),
            "" if one.tokens is None else f"{one.tokens:,}",
            _size(one.bytes),
            _text(one.world_size),
            _text(one.zero_stage),
            _text(one.precision),
            _age(one.age_seconds),
            one.state,
        )
    console.print(table)


def verify_and_tell(run: str, runs: Path | None, name: str | None) -> None:
    """Hash the files of one checkpoint, or of all, and print what is wrong.

    Raises `WorldError` when anything is, `UserError` when there is no such checkpoint.
    """
    folder = checkpoints_of(run, runs)
    paths = complete_folders(folder)
    if name is not None and name != "latest":
        paths = [path for path in paths if path.name == name]
    elif name == "latest":
        paths = paths[-1:]
    if not paths:
        find_checkpoint(folder, name or "latest")  # says what there is
    damaged = 0
    for path in paths:
        lines = _verified(path)
        damaged += bool(lines)
        for line in lines:
            console.print(line, markup=False)
    if damaged:
        raise WorldError(f"{folder}: {damaged} of {len(paths)} checkpoints damaged, as listed")


def _verified(path: Path) -> list[str]:
    try:
        with reading(path), console.status(f"verify: {path.name}"):
            checkpoint = open_checkpoint(path)
            marker = checkpoint.marker
            if wrong := wrong_files(path, marker):
                return wrong
    except WorldError as error:
        if path.exists():
            return [str(error)]
        console.print(f"{path.name} was removed meanwhile, as the recipe's retention asks")
        return []
    hashed = all(file.sha256 for file in marker.files.values())
    how = "" if hashed else ", by size alone: it was saved before checkpoints carried hashes"
    console.print(f"{path.name} is whole: {len(marker.files)} files, {_size(marker.size)}{how}")
    return []


def _listed(path: Path) -> Listed:
    marker = path / MARKER
    since = time.time() - (marker if marker.is_file() else path).stat().st_mtime
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    suffix = next((suffix for suffix in _NO_CHECKPOINT if suffix in path.suffix), None)
    if suffix is None and not marker.is_file():
        return Listed(path.name, "not complete", False, None, None, None, size, None, None, None, round(since, 1))
    try:
        opened = open_checkpoint(path).state if marker.is_file() else None
        state = "complete" if suffix is None else _NO_CHECKPOINT[suffix]
    except WorldError as error:
        opened, state = None, str(error) if suffix is None else _NO_CHECKPOINT[suffix]
    return Listed(
        name=path.name,
        state=state,
        complete=state == "complete",
        step=opened and opened.step,
        phase=opened and opened.phase,
        tokens=opened and opened.tokens,
        bytes=size,
        world_size=opened and opened.world_size,
        zero_stage=opened and opened.zero_stage,
        precision=opened and opened.precision,
        age_seconds=round(since, 1),
    )


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _age(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
