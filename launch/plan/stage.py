"""`adaponder plan`: puts the parts together, and prints them as tables or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from launch.plan.disk import run_disk
from launch.plan.layouts import CHECKPOINTING, Layout, Planner, choose, strategies_of
from launch.plan.network import planned_config
from launch.plan.parameters import count_parameters
from launch.plan.work import run_work
from pipeline.console import error_console
from pipeline.data.order import accumulation_steps
from pipeline.errors import UserError
from pipeline.gpus import MEMORY_GIB, PEAK_FLOPS_BF16
from pipeline.model.flops import Checkpointing
from pipeline.recipe import Recipe
from pipeline.recipe_reader import read_recipe
from pipeline.strategy_file import read_strategy, zero_stage


@dataclass(frozen=True)
class Options:
    """The command's arguments."""

    recipe: str
    overrides: Sequence[str] = ()
    nodes: str = "1"
    gpus_per_node: int = 8
    gpu: str = "H100"
    gpu_memory_gib: float | None = None
    mfu: float = 0.4
    mean_depth: float | None = None
    price: float | None = None


def plan_and_tell(options: Options, as_json: bool) -> None:
    """Print the plan. Raises `UserError` for what cannot be planned."""
    with error_console.status("counting what the network's own code allocates"):
        found = make_plan(options)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    from launch.plan.report import tell

    tell(found)


def make_plan(options: Options) -> dict[str, Any]:
    """Everything as plain data: bytes, multiply-accumulates, days."""
    recipe = read_recipe(options.recipe, options.overrides)
    nodes = _nodes(options, recipe)
    on_gpu, gib = _gpu(options)
    if not 0 < options.mfu <= 1:
        raise UserError(f"--mfu {options.mfu}: a share of the peak is above 0 and at most 1, for instance 0.4")
    if options.price is not None and options.price < 0:
        raise UserError(f"--price {options.price}: a price is not negative")
    config, source = planned_config(recipe)
    mean_depth = config.max_passes if options.mean_depth is None else options.mean_depth
    if not 1 <= mean_depth <= config.max_passes:
        raise UserError(f"--mean-depth {mean_depth}: between 1 and model.max_passes, {config.max_passes}")
    own = read_strategy(recipe.train.strategy)
    if zero_stage(own) == 0 and recipe.train.precision == "bf16":
        raise UserError(f"train.strategy {recipe.train.strategy} does not train bf16: take zero1, or fp32")

    planner = Planner(recipe, config, on_gpu, None if gib is None else gib * 2**30)
    strategies = strategies_of(recipe)
    by_nodes = []
    for count in nodes:
        layouts = [
            planner.layout(count, options.gpus_per_node, strategy, checkpointing)
            for strategy in strategies
            for checkpointing in CHECKPOINTING
        ]
        taken, why = choose(layouts, recipe)
        by_nodes.append(_told(recipe, config, planner, options, count, layouts, taken, why, mean_depth))
    work = run_work(recipe, config, recipe.train.activation_checkpointing, mean_depth)
    return {
        "recipe": recipe.name,
        "network": {
            "source": source,
            "max_passes": config.max_passes,
            "parameters": count_parameters(config).as_dict(),
        },
        "gpu": {"name": options.gpu, "memory_gib": gib, "per_node": options.gpus_per_node, "mfu": options.mfu},
        "training": {
            "precision": recipe.train.precision,
            "micro_batch": recipe.train.micro_batch,
            "global_batch": recipe.train.global_batch,
            "tokens_per_step": recipe.tokens_per_step,
            "steps": work.steps,
            "tokens": work.tokens,
            "mean_depth": mean_depth if recipe.train.skip_halted else float(config.max_passes),
            "activation_checkpointing": recipe.train.activation_checkpointing,
            "multiply_accumulates": work.model.as_dict(),
            "recomputed": work.recomputed.as_dict(),
        },
        "disk": asdict(run_disk(recipe, planner.parameters, config.vocab_size, planner.trained, own)),
        "nodes": by_nodes,
    }


def _told(
    recipe: Recipe,
    config: Any,
    planner: Planner,
    options: Options,
    nodes: int,
    layouts: list[Layout],
    taken: Layout | None,
    why: str,
    mean_depth: float,
) -> dict[str, Any]:
    """One number of machines."""
    ranks = nodes * options.gpus_per_node
    work = run_work(recipe, config, recipe.train.activation_checkpointing, mean_depth)
    peaks = PEAK_FLOPS_BF16 if recipe.train.precision == "bf16" else {}
    days = {name: work.days(peak, options.mfu, ranks) for name, peak in peaks.items()}
    hours = 24 * ranks * days[options.gpu] if options.gpu in days else None
    own = next(
        layout
        for layout in layouts
        if (layout.strategy, layout.checkpointing) == (recipe.train.strategy, recipe.train.activation_checkpointing)
    )
    return {
        "nodes": nodes,
        "ranks": ranks,
        "accumulation_steps": accumulation_steps(recipe.train.micro_batch, recipe.train.global_batch, ranks),
        "days": days,
        "gpu_hours": hours,
        "cost": None if hours is None or options.price is None else hours * options.price,
        "recipe_layout": _layout(recipe, config, own, mean_depth),
        "take": None if taken is None else _layout(recipe, config, taken, mean_depth),
        "why": why,
        "layouts": [_layout(recipe, config, layout, mean_depth) for layout in layouts],
    }


def _layout(recipe: Recipe, config: Any, layout: Layout, mean_depth: float) -> dict[str, Any]:
    work = run_work(recipe, config, cast(Checkpointing, layout.checkpointing), mean_depth)
    return {
        "strategy": layout.strategy,
        "activation_checkpointing": layout.checkpointing,
        "peak_bytes": layout.memory.peak,
        "peak_at": layout.memory.moment,
        "parts": layout.memory.device,
        "moments": layout.memory.moments,
        "host_parts": layout.memory.host,
        "host_start_bytes": layout.memory.host_start,
        "fits": layout.fits,
        "largest_micro_batch": layout.largest_micro_batch,
        "largest_micro_batch_bytes": layout.largest_memory.peak if layout.largest_memory else None,
        "recomputed_share": work.recomputed_share,
    }


def _nodes(options: Options, recipe: Recipe) -> list[int]:
    """The numbers of machines, each of which must divide the global batch."""
    parts = [part.strip() for part in options.nodes.split(",")]
    if not all(part.isdigit() and int(part) for part in parts):
        raise UserError(f"--nodes {options.nodes}: whole numbers of at least 1 are expected, for instance 1,2,4")
    if options.gpus_per_node < 1:
        raise UserError(f"--gpus-per-node {options.gpus_per_node}: at least 1 is expected")
    nodes = sorted({int(part) for part in parts})
    for count in nodes:
        accumulation_steps(recipe.train.micro_batch, recipe.train.global_batch, count * options.gpus_per_node)
    return nodes


def _gpu(options: Options) -> tuple[bool, float | None]:
    """Whether there is one, and its memory in GiB."""
    if options.gpu_memory_gib is not None and options.gpu_memory_gib <= 0:
        raise UserError(f"--gpu-memory-gib {options.gpu_memory_gib}: must be above 0")
    if options.gpu == "cpu":
        return False, options.gpu_memory_gib
    if options.gpu not in MEMORY_GIB and options.gpu_memory_gib is None:
        raise UserError(
            f"--gpu {options.gpu}: known are {', '.join(MEMORY_GIB)} and cpu; of another give --gpu-memory-gib too"
        )
    return True, options.gpu_memory_gib or MEMORY_GIB[options.gpu]
