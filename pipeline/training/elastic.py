"""Whether a checkpoint can be continued in another world: other ranks, another ZeRO stage, another micro batch.

Decided from the checkpoint's own words, before anything is loaded: what DeepSpeed cannot convert would end in an empty
AssertionError on every rank, after minutes of reading.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from pipeline.checkpoint import Checkpoint
from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.training.phases import segments
from pipeline.training.strategy import keeps_states_on_nvme

NVME_FOLDER = "offloaded_tensors"
"""Where DeepSpeed keeps the states of strategies with NVMe, in a checkpoint."""
_PARTITIONED_ALIKE = ({1, 2}, {3})
"""ZeRO stages between which DeepSpeed's universal checkpoint carries states. 1 -> 3, 3 -> 1 and 3 -> 2 it refuses with
an empty AssertionError (0.19.8)."""


class Loading(Enum):
    """How a training takes a checkpoint's states."""

    AS_SAVED = "as it was saved"
    UNIVERSAL = "through DeepSpeed's universal checkpoint"
    WEIGHTS = "its weights alone, with a fresh optimizer"


def choose_loading(checkpoint: Checkpoint, recipe: Recipe, world_size: int, zero_stage: int, resume: str) -> Loading:
    """How `world_size` ranks under `zero_stage` take the checkpoint.

    resume: "weights" takes the weights alone, which works in every world. Raises `UserError` where the optimizer's
    states cannot go on, saying what would do.
    """
    state, train = checkpoint.state, recipe.train
    trained = next((segment.trained for segment in segments(train.phases) if segment.end_step > state.step), None)
    if trained is None:  # all steps are taken, nothing will be loaded
        return Loading.AS_SAVED
    if resume == "weights" or trained != state.trained:
        return Loading.WEIGHTS
    if state.precision != train.precision:
        raise _cannot(checkpoint, f"in {train.precision}", f"train.precision {state.precision}")
    if state.zero_stage == zero_stage and (zero_stage == 0 or state.world_size == world_size):
        return Loading.AS_SAVED
    if not any({state.zero_stage, zero_stage} <= alike for alike in _PARTITIONED_ALIKE):
        possible = " or ".join(str(stage) for stage in _alike(state.zero_stage))
        raise _cannot(checkpoint, f"under ZeRO {zero_stage}", f"a train.strategy of ZeRO {possible}")
    if keeps_states_on_nvme(train.strategy) or any(name.startswith(NVME_FOLDER) for name in checkpoint.marker.files):
        raise _cannot(
            checkpoint,
            f"on {world_size} ranks with states on NVMe disks",
            f"{state.world_size} ranks and the strategy it had",
        )
    return Loading.UNIVERSAL


def what_changes(checkpoint: Checkpoint, recipe: Recipe, world_size: int, zero_stage: int) -> list[str]:
    """What is not as it was when the checkpoint was saved, in words; empty where nothing is."""
    state = checkpoint.state
    before: dict[str, Any] = state.recipe["train"]
    found = []
    if state.world_size != world_size:
        found.append(f"{state.world_size} -> {world_size} ranks")
    if state.zero_stage != zero_stage:
        found.append(f"ZeRO {state.zero_stage} -> {zero_stage}")
    if before["micro_batch"] != recipe.train.micro_batch:
        told = f"micro batch {before['micro_batch']} -> {recipe.train.micro_batch}"
        if any(phase.ponder_weight for phase in recipe.train.phases):
            told += " (the ponder loss takes its smallest gate values within each micro batch)"
        found.append(told)
    return found


def _alike(zero_stage: int) -> list[int]:
    return sorted(next((alike for alike in _PARTITIONED_ALIKE if zero_stage in alike), {zero_stage}))


def _cannot(checkpoint: Checkpoint, where: str, instead: str) -> UserError:
    state = checkpoint.state
    ranks = "1 rank" if state.world_size == 1 else f"{state.world_size} ranks"
    return UserError(
        f"{checkpoint.path} was written by {ranks} under ZeRO {state.zero_stage} in {state.precision}: its optimizer "
        f"states cannot go on {where}; take {instead}, or go on from its weights with a fresh optimizer: "
        "--resume weights"
    )
