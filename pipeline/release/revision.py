"""Which step a release is of: `main`, or an intermediate one as `step1000`, Pythia's way.

    release/                       main: the last step, or the one that was chosen
    release/revisions/step1000/    a whole release of its own

On the hub a revision is a branch of that name; at a URL it lies as it does in the run's folder.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from pipeline.checkpoint import POINTER, checkpoint_name
from pipeline.durable import PARTIAL_SUFFIX, fsync_folder, repair_folder, replace_folder
from pipeline.errors import UserError
from pipeline.release.provenance import REVISIONS

MAIN = "main"
_STEP = re.compile(r"step(0|[1-9]\d{0,7})")


def checkpoint_of(revision: str, checkpoint: str) -> str:
    """The name of the checkpoint that a revision is made from; `checkpoint` is what --checkpoint says.

    Raises `UserError` for a revision of another form, and for a checkpoint of another step.
    """
    if revision == MAIN:
        return checkpoint
    found = _STEP.fullmatch(revision)
    if found is None:
        raise UserError(f"--revision {revision}: main, or step and a number (step1000), is expected")
    name = checkpoint_name(int(found[1]))
    if checkpoint not in (POINTER, name):
        raise UserError(f"--revision {revision} is of {name}, not of {checkpoint}: leave --checkpoint out")
    return name


def folder_of(release: Path, revision: str) -> Path:
    """Where a revision lies below the run's release folder."""
    return release if revision == MAIN else release / REVISIONS / revision


def put_in_place(partial: Path, folder: Path) -> None:
    """`replace_folder` that takes the revisions below `folder` along."""
    if (folder / REVISIONS).is_dir():
        os.replace(folder / REVISIONS, partial / REVISIONS)
        fsync_folder(partial)
    replace_folder(partial, folder)


def repair(folder: Path) -> None:
    """Undo or finish a `put_in_place` that a kill cut short; no revision is lost."""
    repair_folder(folder)
    kept = folder.with_name(folder.name + PARTIAL_SUFFIX) / REVISIONS
    if kept.is_dir() and folder.is_dir() and not (folder / REVISIONS).exists():
        os.replace(kept, folder / REVISIONS)
        fsync_folder(folder)
