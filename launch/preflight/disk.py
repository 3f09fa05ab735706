"""Is there room for what the run will write, and does the disk take it?"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.preflight.check import Check, Context, Finding, Told, first_of_nodes
from launch.preflight.needs import needs
from pipeline.data.manifest import MANIFEST_NAME
from pipeline.recipe import DataSection

_TRIED_BYTES = 16 << 20
"""Written and read back by each node: a full quota shows only when one writes."""


def look(context: Context) -> dict[str, Any] | None:
    """Of the first rank of each node."""
    if context.meeting.me.local_rank:
        return None
    folder = context.folder.path
    folder.mkdir(parents=True, exist_ok=True)
    return {"free_bytes": shutil.disk_usage(folder).free, "written_per_second": _try(folder, context.meeting.rank)}


def judge(context: Context, told: Sequence[Told]) -> list[Finding]:
    import torch

    recipe, folder = context.recipe, context.folder
    disk = needs(recipe, len(told), torch.cuda.is_available()).disk
    makes_shards = recipe.data.shards == DataSection().shards and not (folder.shards / MANIFEST_NAME).is_file()
    there = sum(path.stat().st_size for path in folder.checkpoints.rglob("*") if path.is_file())
    needed = max(0, disk.checkpoints_bytes - there) + (disk.shards if makes_shards else 0)
    nodes = first_of_nodes(told)
    tightest = min(nodes, key=lambda node: node.seen["free_bytes"])
    free = tightest.seen["free_bytes"]
    slowest = min(nodes, key=lambda node: node.seen["written_per_second"])
    figures = {
        "free_bytes": free,
        "needed_bytes": needed,
        "written_per_second": {node.place.host: round(node.seen["written_per_second"]) for node in nodes},
    }
    if free < needed:
        text = (
            f"{folder.path} has {_size(free)} left on {tightest.place.host}, the run will write {_size(needed)} more "
            f"({disk.most} checkpoints of {_size(disk.checkpoint)} at once{', shards' if makes_shards else ''}): make "
            "room, or set train.keep_last and train.checkpoint_every_steps"
        )
        return [Finding("failed", text, figures)]
    speed = slowest.seen["written_per_second"] / 1e6
    text = f"{_size(needed)} more to be written, {_size(free)} left; {speed:,.0f} MB/s from {slowest.place.host}"
    return [Finding("ok", text, figures)]


def _try(folder: Path, rank: int) -> float:
    """Bytes a second that are written and have reached the disk; OSError naming the file where they do not."""
    path = folder / f".preflight-{rank:04d}.write"
    content = os.urandom(1 << 20)
    began = time.perf_counter()
    try:
        with open(path, "wb", buffering=0) as file:
            for _ in range(_TRIED_BYTES // len(content)):
                file.write(content)
            os.fsync(file.fileno())
        if path.stat().st_size != _TRIED_BYTES:
            raise OSError(0, f"{path.stat().st_size} of {_TRIED_BYTES} bytes arrived", str(path))
        return _TRIED_BYTES / (time.perf_counter() - began)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        path.unlink(missing_ok=True)


def _size(size: float) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"


CHECK = Check("disk", look, judge)
