"""Which steps of a run are saved, and which checkpoints stay, as pure functions of the recipe."""

from __future__ import annotations

from itertools import accumulate

from pipeline.recipe_train import TrainSection

LAST_LOG_SPACED_STEP = 512
"""Pythia's: 1, 2, 4, ..., 512."""


def saves_at(train: TrainSection, step: int) -> bool:
    """Whether the recipe asks for a checkpoint after `step` steps; ends of phases are saved besides."""
    return step % train.checkpoint_every_steps == 0 or (train.checkpoint_log_spaced and _is_log_spaced(step))


def superfluous(train: TrainSection, steps: list[int]) -> list[int]:
    """Which of the complete checkpoints at `steps` may go, oldest first.

    What stays: the last `keep_last`, every `keep_every_steps`-th, step 0, the ends of phases, and the log-spaced steps
    where they were asked for.
    """
    if train.keep_last == "all":
        return []
    ends = {0, *accumulate(phase.steps for phase in train.phases)}
    return [
        step
        for step in sorted(set(steps))[: -train.keep_last]
        if step not in ends
        and not (train.keep_every_steps and step % train.keep_every_steps == 0)
        and not (train.checkpoint_log_spaced and _is_log_spaced(step))
    ]


def _is_log_spaced(step: int) -> bool:
    return 0 < step <= LAST_LOG_SPACED_STEP and step & (step - 1) == 0
