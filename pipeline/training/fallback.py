"""Which checkpoint a training continues from: the newest that verifies, the same on every rank.

Each rank hashes the files that it is about to load, so that all of a checkpoint is looked at once, in parallel, and
then lies in the page cache of the host that needs it. Rank 0 decides; a newer one that does not verify is named and set
aside.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist

from pipeline.checkpoint import (
    DAMAGED_SUFFIX,
    POINTER,
    Checkpoint,
    complete_folders,
    none_verifies,
    open_checkpoint,
)
from pipeline.checkpoint_marker import Marker, wrong_files
from pipeline.console import console
from pipeline.durable import fsync_folder, write_text
from pipeline.errors import WorldError
from pipeline.events import append_event
from pipeline.run_folder import RunFolder
from pipeline.training.agreement import from_rank_0, read_together
from pipeline.training.state_files import rank_of_file


def settle_checkpoint(folder: RunFolder, device: torch.device) -> str | None:
    """Name of the checkpoint to continue from, None where there is none; collective.

    Those that do not verify are renamed (`step-00001000.damaged`) and stand with the reason on the console and in
    events.jsonl; what rank 0 sees of the file system counts. Raises `WorldError` on every rank when there are
    checkpoints and none verifies, or a file is there but cannot be read.
    """
    names = from_rank_0([path.name for path in reversed(complete_folders(folder.checkpoints))])
    damaged: list[tuple[str, str]] = []
    for name in names:
        wrong = _what_is_wrong(folder, folder.checkpoints / name, device)
        if wrong is None:
            # Nobody may still be looking at a folder that is about to be renamed.
            dist.barrier()
            if damaged and dist.get_rank() == 0:
                _set_aside(folder, damaged, name)
            dist.barrier()
            return name
        damaged.append((name, wrong))
    if damaged:
        raise none_verifies(folder.checkpoints, [wrong for _, wrong in damaged])
    return None


def first_damage(checkpoint: Checkpoint, verify: str) -> str | None:
    """What is wrong with a checkpoint whose sizes are right, as far as `train.verify_on_resume` asks; None: nothing."""
    if verify == "sizes":
        return None
    return next(iter(wrong_files(checkpoint.path, checkpoint.marker)), None)


def _what_is_wrong(folder: RunFolder, path: Path, device: torch.device) -> str | None:
    """The first thing that is wrong with a checkpoint, on every rank; None: nothing. Collective."""
    opened: tuple[Marker | None, str | None] = (None, None)
    if dist.get_rank() == 0:
        try:
            opened = open_checkpoint(path).marker, None
        except WorldError as error:
            opened = None, str(error)
    marker, wrong = from_rank_0(opened)
    if wrong is not None or folder.recipe.train.verify_on_resume == "sizes":
        return wrong
    ranks = dist.get_world_size()
    mine = [name for name in marker.files if rank_of_file(name, ranks) == dist.get_rank()]
    found = read_together(lambda: wrong_files(path, marker, mine), device)
    everywhere: list[list[str]] = [[]] * ranks
    dist.all_gather_object(everywhere, found)
    return next((line for lines in everywhere for line in lines), None)


def _set_aside(folder: RunFolder, damaged: list[tuple[str, str]], continued: str) -> None:
    for name, wrong in damaged:
        path = folder.checkpoints / name
        aside, number = path.with_name(name + DAMAGED_SUFFIX), 2
        while aside.exists():
            aside, number = path.with_name(f"{name}{DAMAGED_SUFFIX}-{number}"), number + 1
        os.replace(path, aside)
        append_event(
            folder, "checkpoint_damaged", checkpoint=name, reason=wrong, renamed_to=aside.name, continued_from=continued
        )
        console.print(
            f"[yellow]{name} does not verify: {wrong}; it is now {aside.name}, and training continues from "
            f"{continued}[/yellow]",
            highlight=False,
        )
    fsync_folder(folder.checkpoints)
    write_text(folder.checkpoints / POINTER, continued + "\n")
