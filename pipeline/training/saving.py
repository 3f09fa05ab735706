"""Writing a checkpoint so that it is there whole or not at all.

DeepSpeed's own save is not atomic, and its rank 0 writes `latest` before the other ranks are done. So every rank saves
into a folder with another name; after a barrier rank 0 adds the state and the marker, makes it durable, and renames.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from pipeline.checkpoint import FROZEN_FILE, MARKER, POINTER, STATE_FILE, TrainerState, checkpoint_name
from pipeline.durable import PARTIAL_SUFFIX, fsync_file, fsync_folder, write_json, write_text
from pipeline.errors import WorldError
from pipeline.recipe import Recipe
from pipeline.training.checks import TrainingPlan
from pipeline.training.engine import Engine, set_halting
from pipeline.training.phases import Segment, phase_at
from pipeline.versions import installed_versions


class Saver:
    """Saves a segment's checkpoints: knows everything of trainer_state.json but the step."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        plan: TrainingPlan,
        segment: Segment,
        run_id: Callable[[], str | None],
        frozen: dict[str, torch.Tensor],
    ) -> None:
        """`frozen`: fp32 weights of which the engine has rounded copies only; rank 0's are written."""
        self._recipe, self._folder, self._plan, self._segment = recipe, folder, plan, segment
        self._run_id, self._frozen = run_id, frozen

    def __call__(self, engine: Engine, step: int) -> None:
        """Save after `step` steps; collective."""
        recipe, plan = self._recipe, self._plan
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
        )
        save_checkpoint(engine, self._folder, state, self._frozen)


def save_checkpoint(engine: Engine, folder: Path, state: TrainerState, frozen: dict[str, torch.Tensor]) -> None:
    """Save engine, state and frozen weights as `folder/step-...`; collective."""
    path = folder / checkpoint_name(state.step)
    partial = folder / (path.name + PARTIAL_SUFFIX)
    on_rank_0 = dist.get_rank() == 0
    if on_rank_0:
        shutil.rmtree(partial, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    engine.save_checkpoint(str(folder), tag=partial.name, save_latest=False)
    dist.barrier()
    if int(os.environ["LOCAL_RANK"]) == 0:
        # On a shared file system each host flushes what its own ranks wrote.
        for file in _files(partial):
            fsync_file(file)
    dist.barrier()
    if on_rank_0:
        engine.module.config.save_pretrained(partial)
        if frozen:
            save_file(frozen, partial / FROZEN_FILE)
            fsync_file(partial / FROZEN_FILE)
        write_text(partial / STATE_FILE, state.model_dump_json(indent=2) + "\n")
        sizes = {str(file.relative_to(partial)): file.stat().st_size for file in _files(partial)}
        write_json(partial / MARKER, {"files": sizes})
        if (path / MARKER).exists():
            raise WorldError(f"{path} appeared while this training ran: is another one writing into {folder}?")
        shutil.rmtree(path, ignore_errors=True)
        os.replace(partial, path)
        fsync_folder(folder)
        write_text(folder / POINTER, path.name + "\n")
    dist.barrier()


def remove_leftovers(folder: Path) -> None:
    """Remove what killed attempts left half written; rank 0 alone, before anything is saved."""
    if folder.is_dir():
        for path in folder.glob(f"*{PARTIAL_SUFFIX}"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
