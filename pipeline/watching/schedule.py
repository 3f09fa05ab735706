"""Which suites a checkpoint is owed, as a pure function of the recipe: every watcher finds the same."""

from __future__ import annotations

from itertools import accumulate

from pipeline.kept_checkpoints import LAST_LOG_SPACED_STEP, saves_at
from pipeline.recipe import Recipe


def owed_suites(recipe: Recipe, step: int) -> list[str]:
    """The suites of the checkpoint after `step` steps, the cheap ones first."""
    section = recipe.evaluate
    full = section.full_suites if _is_full(recipe, step) else []
    return list(dict.fromkeys([*section.suites, *full]))


def _is_full(recipe: Recipe, step: int) -> bool:
    """Whether it is the last checkpoint, or an n-th of the planned saves.

    Counted are the saves that the recipe plans and not those on disk: retention removes some, and a training that was
    stopped has left one at a step of its own.
    """
    if step == recipe.train.steps:
        return True
    every = recipe.evaluate.full_every
    if not every or step <= 0:
        return False
    planned = planned_saves(recipe, step)
    return step in planned and len(planned) % every == 0


def planned_saves(recipe: Recipe, last: int) -> set[int]:
    """The steps from 1 to `last` after which the recipe asks for a checkpoint."""
    train = recipe.train
    regular = set(range(train.checkpoint_every_steps, last + 1, train.checkpoint_every_steps))
    early = {step for step in range(1, min(last, LAST_LOG_SPACED_STEP) + 1) if saves_at(train, step)}
    ends = {step for step in accumulate(phase.steps for phase in train.phases) if step <= last}
    return regular | early | ends
