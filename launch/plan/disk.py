"""What a run writes: checkpoints as they come and go, and the shards it reads."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from launch.plan.rank_memory import MASTERS, MOMENTS
from pipeline.kept_checkpoints import saves_at, superfluous
from pipeline.recipe import Recipe
from pipeline.strategy_file import zero_stage

SHARD_OVERHEAD = 1.03
"""Index, documents and the tar's own headers, at most, over the tokens."""
UINT16_IDS = 1 << 16


@dataclass(frozen=True)
class Disk:
    """Bytes on the disk of the run's folder."""

    checkpoint: int
    """One, of a phase that trains everything."""
    kept: int
    """Checkpoints at the end of the run."""
    most: int
    """Checkpoints at once, the one that is being written included."""
    checkpoints_bytes: int
    """At the most."""
    shards: int
    """The rows that the run reads, if it reads none twice."""
    written: int
    """Checkpoints over the whole run."""


def run_disk(
    recipe: Recipe, parameters: int, vocabulary: int, trained: dict[str, int], strategy: dict[str, Any]
) -> Disk:
    """`parameters` of the whole network; `trained`: of them by `Phase.trained`."""
    saved = saved_steps(recipe)
    sizes = {kind: checkpoint_bytes(recipe, parameters, count, strategy) for kind, count in trained.items()}
    ends = list(accumulate(phase.steps for phase in recipe.train.phases))
    size_at = {}
    for step in saved:
        phase = next(phase for phase, end in zip(recipe.train.phases, ends, strict=True) if step <= end)
        size_at[step] = sizes[phase.trained]
    there: list[int] = []
    most = most_bytes = 0
    for step in saved:
        there.append(step)
        most = max(most, len(there))
        most_bytes = max(most_bytes, sum(size_at[kept] for kept in there))
        if recipe.train.keep_last != "all":
            gone = set(superfluous(recipe.train, there))
            there = [kept for kept in there if kept not in gone]
    rows = recipe.train.steps * recipe.train.global_batch
    return Disk(
        checkpoint=max(sizes.values()),
        kept=len(there),
        most=most,
        checkpoints_bytes=most_bytes,
        shards=shard_bytes(recipe, rows, vocabulary),
        written=sum(size_at.values()),
    )


def saved_steps(recipe: Recipe) -> list[int]:
    """Steps after which the run saves: 0, those the recipe asks for, and the ends of phases."""
    ends = set(accumulate(phase.steps for phase in recipe.train.phases))
    steps = range(1, recipe.train.steps + 1)
    return [0, *(step for step in steps if step in ends or saves_at(recipe.train, step))]


def checkpoint_bytes(recipe: Recipe, parameters: int, trained: int, strategy: dict[str, Any]) -> int:
    """All files of one checkpoint: weights as the network has them, masters and moments, and exact frozen weights.

    Without ZeRO there are no masters beside the weights; in stage 3 no weights beside the masters but frozen ones.
    """
    stage, width = zero_stage(strategy), 4 if recipe.train.precision == "fp32" else 2
    frozen = parameters - trained
    exact = 4 * frozen if width == 2 else 0
    if stage == 0:
        return width * parameters + MOMENTS * trained + exact
    weights = width * (frozen if stage == 3 else parameters)
    return weights + (MASTERS + MOMENTS) * trained + exact


def shard_bytes(recipe: Recipe, rows: int, vocabulary: int) -> int:
    """Shards of so many rows; ids take two bytes unless the vocabulary needs four."""
    width = 4 if vocabulary > UINT16_IDS else 2
    return round(SHARD_OVERHEAD * rows * (recipe.tokenize.seq_len + 1) * width)
