"""The recipe's cluster.preflight section: what `adaponder preflight` looks at, and what it takes for wrong."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.recipe_section import PositiveFloat, PositiveInt, Section

CheckName = Literal[
    "versions",
    "devices",
    "memory",
    "disk",
    "shared_folder",
    "clocks",
    "shards",
    "tracking",
    "network",
    "all_reduce",
    "slow_ranks",
    "mock_step",
]


class PreflightSection(Section):
    """What is checked on the nodes before they train ([cluster.md](cluster.md#preflight))."""

    before_training: bool = True
    """Whether a training that `adaponder launch` starts is checked first, inside its job and on every node."""
    skip: list[CheckName] = []
    """Checks that are left out."""
    shards: Literal["sample", "all"] = "sample"
    """Which shards are read and compared with their hashes, each by one rank: one for each rank, or all. Sizes, indexes
    and the tokenizer always are."""
    clock_seconds: PositiveFloat = 5.0
    """How far apart the nodes' clocks may be."""
    all_reduce_mebibytes: list[PositiveInt] = [1, 16, 64]
    """Sizes of what is summed up over all ranks, in turn."""
    slow_rank_factor: Annotated[float, Field(gt=1.0)] = 2.0
    """A rank is slow that computes so many times longer, or sends so many times slower, than the others."""
    timeout_seconds: PositiveInt = 180
    """How long a check may take: a rank that has not answered then is named."""
