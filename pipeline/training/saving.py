"""Writing a checkpoint so that it is there whole or not at all.

DeepSpeed's own save is not atomic, and its rank 0 writes `latest` before the other ranks are done. So every rank saves
into a folder with another name, hashing what it writes; rank 0 adds the state and the marker with all hashes, makes it
durable, and renames.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from pipeline.checkpoint import FROZEN_FILE, POINTER, STATE_FILE, TrainerState, checkpoint_name
from pipeline.checkpoint_lock import REMOVED_SUFFIX, remove_for_good
from pipeline.checkpoint_marker import MARKER, MarkedFile, write_marker
from pipeline.durable import PARTIAL_SUFFIX, fsync_folder, write_text
from pipeline.errors import WorldError
from pipeline.events import append_event
from pipeline.recipe import Recipe
from pipeline.run_folder import RunFolder
from pipeline.training.checks import TrainingPlan
from pipeline.training.engine import Engine, set_halting
from pipeline.training.fingerprint import take_fingerprint
from pipeline.training.phases import Segment, phase_at
from pipeline.training.retention import Retention
from pipeline.training.state_files import StateFiles, naming, refused
from pipeline.versions import installed_versions


class Saver:
    """Saves a segment's checkpoints: knows everything of trainer_state.json but the step."""

    def __init__(
        self,
        recipe: Recipe,
        folder: RunFolder,
        plan: TrainingPlan,
        segment: Segment,
        run_id: Callable[[], str | None],
        frozen: dict[str, torch.Tensor],
    ) -> None:
        """`frozen`: fp32 weights of which the engine has rounded copies only; rank 0's are written."""
        self._recipe, self._folder, self._plan, self._segment = recipe, folder, plan, segment
        self._run_id, self._frozen = run_id, frozen
        self._retention = Retention(folder)

    def __call__(self, engine: Engine, step: int) -> None:
        """Save after `step` steps, then let go of what the recipe does not keep; collective.

        Raises `WorldError`, and saves nothing, when the network no longer gives finite logits or the disk refuses.
        """
        recipe, plan = self._recipe, self._plan
        began = time.monotonic()
        # The phase of the last step taken, not of the next: it says what made these weights.
        phase, _ = phase_at(recipe.train.phases, max(0, step - 1))
        set_halting(engine.module.config, phase)
        rows = step * recipe.train.global_batch
        state = TrainerState(
            step=step,
            save_id=uuid.uuid4().hex,
            rows=rows,
            tokens=rows * plan.manifest.seq_len,
            phase=phase.name,
            trained=self._segment.trained,
            seed=recipe.seed,
            recipe=recipe.resolved(),
            recipe_hash=recipe.hash(),
            manifest_hash=plan.manifest_hash,
            mlflow_run_id=self._run_id(),
            world_size=plan.world_size,
            zero_stage=plan.zero_stage,
            precision=recipe.train.precision,
            versions=installed_versions(),
            fingerprint=take_fingerprint(engine, recipe, plan.world_size, plan.zero_stage),
        )
        saved = save_checkpoint(engine, self._folder.checkpoints, state, self._frozen)
        if saved is not None:
            seconds = round(time.monotonic() - began, 3)
            append_event(self._folder, "checkpoint_saved", step=step, seconds=seconds, bytes=saved.size)
            self._retention()


@dataclass(frozen=True)
class Saved:
    """What was written."""

    path: Path
    size: int
    """Bytes of all files but the marker."""


def save_checkpoint(engine: Engine, folder: Path, state: TrainerState, frozen: dict[str, torch.Tensor]) -> Saved | None:
    """Save engine, state and frozen weights as `folder/step-...`; collective. Only rank 0 is told what came of it.

    Raises `WorldError` naming the file when a disk refuses, on the rank that it refused: the others wait for that rank
    until the launcher ends them.
    """
    path = folder / checkpoint_name(state.step)
    partial = folder / (path.name + PARTIAL_SUFFIX)
    rank = dist.get_rank()
    if rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        with naming(partial):
            partial.mkdir(parents=True)
    dist.barrier()
    files = StateFiles(partial)
    writer = cast(Any, engine).checkpoint_engine
    writer.save = files.save
    try:
        engine.save_checkpoint(str(folder), tag=partial.name, save_latest=False)
    except OSError as error:  # of what DeepSpeed writes by itself: folders, a script, states on NVMe
        raise refused(Path(error.filename2 or error.filename or partial), error) from error
    finally:
        del writer.save
    with naming(partial / "offloaded_tensors"):  # of states on NVMe DeepSpeed copies each rank's files by itself
        files.measure(_files(partial / "offloaded_tensors" / f"rank{rank:0>2d}"))
    written: list[dict[str, MarkedFile]] = [{}] * dist.get_world_size()
    dist.all_gather_object(written, files.written)
    saved = None
    if rank == 0:
        for found in written:
            files.written |= found
        _finish(engine, partial, path, state, frozen, files)
        saved = Saved(path, sum(file.size for file in files.written.values()))
    dist.barrier()
    return saved


def _finish(
    engine: Engine,
    partial: Path,
    path: Path,
    state: TrainerState,
    frozen: dict[str, torch.Tensor],
    files: StateFiles,
) -> None:
    """Rank 0's part, once all ranks have written theirs: what belongs to the whole, the marker, the name."""
    with naming(partial / "config.json"):
        engine.module.config.save_pretrained(partial)
    if frozen:
        with naming(partial / FROZEN_FILE):
            save_file(frozen, partial / FROZEN_FILE)
    with naming(partial / STATE_FILE):
        write_text(partial / STATE_FILE, state.model_dump_json(indent=2) + "\n")
    with naming(partial / MARKER):
        files.measure(_files(partial))
        fsync_folder(partial)
        write_marker(partial, files.written)
    if (path / MARKER).exists():
        raise WorldError(f"{path} appeared while this training ran: is another one writing into {path.parent}?")
    shutil.rmtree(path, ignore_errors=True)
    os.replace(partial, path)
    fsync_folder(path.parent)
    with naming(path.parent / POINTER):
        write_text(path.parent / POINTER, path.name + "\n")


def remove_leftovers(folder: Path) -> list[str]:
    """Remove what killed attempts left half written or half removed; rank 0 alone, before anything else is written.

    Returns the names of what was there.
    """
    if not folder.is_dir():
        return []
    found = sorted([*folder.glob(f"*{PARTIAL_SUFFIX}"), *folder.glob(f"*{REMOVED_SUFFIX}")])
    for path in found:
        remove_for_good(path) if path.is_dir() else path.unlink()
    return [path.name for path in found]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
