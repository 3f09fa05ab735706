"""Saving a training: what a checkpoint says of it beside the engine's state, and what is done once it is complete.

`pipeline.training.checkpoint_files` writes it, `pipeline.training.saves_in_flight` beside the training.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from pipeline.checkpoint import TrainerState
from pipeline.checkpoint_lock import REMOVED_SUFFIX, remove_for_good
from pipeline.durable import PARTIAL_SUFFIX
from pipeline.events import append_event
from pipeline.recipe import Recipe
from pipeline.run_folder import RunFolder
from pipeline.training.checkpoint_files import take_checkpoint
from pipeline.training.checks import TrainingPlan
from pipeline.training.depth_control import DepthControl
from pipeline.training.engine import Engine, set_halting
from pipeline.training.fingerprint import take_fingerprint
from pipeline.training.phases import Segment, phase_at
from pipeline.training.retention import Retention
from pipeline.training.saves_in_flight import Completed, SavesInFlight
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
        saves: SavesInFlight,
        depth_control: DepthControl,
    ) -> None:
        """`frozen`: fp32 weights of which the engine has rounded copies only; rank 0's are written."""
        self._recipe, self._folder, self._plan, self._segment = recipe, folder, plan, segment
        self._run_id, self._frozen, self._saves = run_id, frozen, saves
        self._depth_control = depth_control
        self._retention = Retention(folder)

    def __call__(self, engine: Engine, step: int) -> None:
        """Begin to save what there is after `step` steps; collective.

        When it is complete, what the recipe does not keep goes. Raises `WorldError`, and saves nothing, when the
        network no longer gives finite logits or the disk refuses.
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
            depth_control=self._depth_control.state,
        )
        take = partial(take_checkpoint, engine, self._folder.checkpoints, state, self._frozen)
        self._saves.begin(began, take, partial(self._completed, step))

    def _completed(self, step: int, save: Completed) -> None:
        seconds, lost = round(save.seconds, 3), round(save.seconds_lost, 3)
        append_event(self._folder, "checkpoint_saved", step=step, bytes=save.size, seconds=seconds, seconds_lost=lost)
        self._retention()


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
