"""Layouts - a strategy, a kind of activation checkpointing, a number of machines - and which of them to take."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from launch.plan.micro_batches import MicroBatches
from launch.plan.parameters import largest_parameter
from launch.plan.rank_memory import RankMemory, Trained, rank_memory
from pipeline.model import AdaPonderConfig
from pipeline.recipe import Recipe
from pipeline.strategy_file import read_strategy, shipped_strategies, zero_stage
from pipeline.trained_parameters import is_trained

CHECKPOINTING = ("none", "activation", "mlp", "layer", "pass")
ORDER = ("zero1", "zero2", "zero3", "zero2-offload", "zero3-offload", "zero3-nvme")
"""From the strategy that sends least to the one that sends most."""
USABLE_SHARE = 0.92
"""Of a GPU's memory: the rest is for the CUDA context, NCCL's buffers and gaps between the allocator's blocks."""


@dataclass(frozen=True)
class Layout:
    """One way to spread a training."""

    nodes: int
    ranks: int
    strategy: str
    checkpointing: str
    memory: RankMemory
    """With the recipe's micro batch."""
    fits: bool
    """Whether that micro batch does."""
    largest_micro_batch: int
    """Rows that fit and divide the global batch; 0: none does."""
    largest_memory: RankMemory | None
    """With those."""


class Planner:
    """Memory of a recipe's training in any layout."""

    def __init__(self, recipe: Recipe, config: AdaPonderConfig, on_gpu: bool, memory_bytes: float | None) -> None:
        """memory_bytes: of one GPU; None: whatever is needed is there."""
        self.recipe, self._config, self._on_gpu = recipe, config, on_gpu
        self._room = None if memory_bytes is None else USABLE_SHARE * memory_bytes
        # Where everything is trained in one phase, one that trains a part never needs more.
        phases = [phase for phase in recipe.train.phases if phase.trained == "all"] or recipe.train.phases
        kinds = {(phase.trained, phase.halting, phase.ponder_weight > 0): phase for phase in phases}
        self._phases = [(phase, MicroBatches(recipe, config, phase)) for phase in kinds.values()]

    @cached_property
    def trained(self) -> dict[str, int]:
        """Parameters by `Phase.trained`."""
        import torch

        from pipeline.model import AdaPonderForCausalLM

        with torch.device("meta"):
            sizes = {name: weight.numel() for name, weight in AdaPonderForCausalLM(self._config).named_parameters()}
        return {
            phase.trained: sum(size for name, size in sizes.items() if is_trained(phase.trained, name))
            for phase in self.recipe.train.phases
        }

    @cached_property
    def parameters(self) -> int:
        from launch.plan.parameters import count_parameters

        return count_parameters(self._config).total

    def memory(self, strategy: dict[str, Any], checkpointing: str, ranks: int, micro_batch: int) -> RankMemory:
        """The highest of all phases."""
        train = self.recipe.train
        width = 4 if train.precision == "fp32" else 2
        tokens = micro_batch * self.recipe.tokenize.seq_len
        chunk = min(train.vocabulary_chunk_tokens or tokens, tokens)
        found = []
        for phase, batches in self._phases:
            trained = Trained(
                parameters=self.trained[phase.trained],
                frozen=self.parameters - self.trained[phase.trained],
                largest=largest_parameter(self._config),
                weight_bytes=width,
                sum_bytes=4 if (train.grad_accum_dtype or train.precision) == "fp32" else 2,
                ranks=ranks,
                accumulates=train.global_batch > micro_batch * ranks,
                chunk_bytes=chunk * self._config.vocab_size * (4 if width == 4 else 6),
                on_gpu=self._on_gpu,
            )
            found.append(rank_memory(strategy, trained, batches.of(checkpointing, micro_batch)))
        return max(found, key=lambda memory: memory.peak)

    def layout(self, nodes: int, gpus_per_node: int, strategy: str, checkpointing: str) -> Layout:
        """What that layout needs and holds."""
        content, ranks, train = read_strategy(strategy), nodes * gpus_per_node, self.recipe.train
        at_recipe = self.memory(content, checkpointing, ranks, train.micro_batch)
        # Memory rises with rows: of those that divide the global batch, the largest that fits is found by halving.
        choices = divisors(train.global_batch // ranks)
        low, high = 0, len(choices)
        best: RankMemory | None = None
        while low < high:
            middle = (low + high) // 2
            memory = self.memory(content, checkpointing, ranks, choices[middle])
            if self._fits(memory):
                low, best = middle + 1, memory
            else:
                high = middle
        return Layout(
            nodes=nodes,
            ranks=ranks,
            strategy=strategy,
            checkpointing=checkpointing,
            memory=at_recipe,
            fits=self._fits(at_recipe),
            largest_micro_batch=choices[low - 1] if low else 0,
            largest_memory=best,
        )

    def _fits(self, memory: RankMemory) -> bool:
        return self._room is None or memory.peak <= self._room


def strategies_of(recipe: Recipe) -> list[str]:
    """The shipped strategies that the recipe can train under, and its own, in the order of `ORDER`."""
    shipped = list(shipped_strategies())
    names = [name for name in ORDER if name in shipped] + [name for name in shipped if name not in ORDER]
    if recipe.train.strategy not in names:
        names.insert(0, recipe.train.strategy)
    return [name for name in names if recipe.train.precision == "fp32" or zero_stage(read_strategy(name)) > 0]


def choose(layouts: list[Layout], recipe: Recipe) -> tuple[Layout | None, str]:
    """The layout to take for one number of machines, and in one sentence why."""
    wanted = recipe.train.micro_batch
    for name in ORDER:
        of_it = [layout for layout in layouts if layout.strategy == name]
        # The kinds of checkpointing stand in the order of what they compute again; "pass" computes most.
        for layout in of_it:
            if layout.fits:
                return layout, _why(layout, layouts, wanted)
    holding = [layout for layout in layouts if layout.largest_micro_batch]
    if not holding:
        return None, "no strategy holds one row on these GPUs: more of them, larger ones, or shorter rows are needed"
    best = max(holding, key=lambda layout: (layout.largest_micro_batch, -_place(layout.strategy)))
    return best, (
        f"{best.strategy} with activation_checkpointing {best.checkpointing}: no layout holds the recipe's "
        f"micro batch of {wanted}, and this one holds the largest, {best.largest_micro_batch}"
    )


def _why(taken: Layout, layouts: list[Layout], wanted: int) -> str:
    size = f"{taken.memory.peak / 2**30:.1f} GiB"
    layout = f"{taken.strategy} with activation_checkpointing {taken.checkpointing}"
    text = f"{layout} holds a micro batch of {wanted} in {size}"
    place = CHECKPOINTING.index(taken.checkpointing)
    cheaper = [other for other in layouts if other.strategy == taken.strategy]
    if place:
        less = next(other for other in cheaper if other.checkpointing == CHECKPOINTING[place - 1])
        text += f", where {less.checkpointing} would take {less.memory.peak / 2**30:.1f}"
    earlier = [name for name in ORDER[: _place(taken.strategy)] if any(other.strategy == name for other in layouts)]
    if earlier:
        return f"{text}; {' and '.join(earlier)}, which would send less, do not hold them at all"
    return f"{text}; it sends least of all strategies, gradients once a step and weights once"


def _place(strategy: str) -> int:
    return ORDER.index(strategy) if strategy in ORDER else len(ORDER)


def divisors(number: int) -> list[int]:
    """All of them, rising."""
    return [size for size in range(1, number + 1) if number % size == 0]
