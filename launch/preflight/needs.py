"""What the plan says that a rank and the run will take."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from launch.plan.disk import Disk, run_disk
from launch.plan.layouts import Planner
from launch.plan.network import planned_config
from launch.plan.rank_memory import RankMemory
from pipeline.recipe import Recipe
from pipeline.strategy_file import read_strategy


@dataclass(frozen=True)
class Needs:
    """Of the recipe as it stands."""

    rank: RankMemory
    disk: Disk


def needs(recipe: Recipe, ranks: int, on_gpu: bool) -> Needs:
    """Memory of each of `ranks` ranks, and what the run writes."""
    return _needs(recipe.model_dump_json(), ranks, on_gpu)


@functools.lru_cache(maxsize=4)
def _needs(content: str, ranks: int, on_gpu: bool) -> Needs:
    # Counting runs the network's own code without storage: seconds, and two checks ask.
    recipe = Recipe.model_validate_json(content)
    config, _ = planned_config(recipe)
    planner = Planner(recipe, config, on_gpu, None)
    strategy, train = read_strategy(recipe.train.strategy), recipe.train
    memory = planner.memory(strategy, train.activation_checkpointing, ranks, train.micro_batch)
    return Needs(memory, run_disk(recipe, planner.parameters, config.vocab_size, planner.trained, strategy))
