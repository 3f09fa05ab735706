"""One rank of small trainings that are saved on two ranks and go on elsewhere; what came of it goes to JSON.

`torchrun --module tests.training.elastic_runs OUT FOLDER`, first on two ranks, then on others with the same FOLDER. One
process for all settings of a world: starting ranks is most of the time.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist

from pipeline.checkpoint import Checkpoint, TrainerState, load_model, open_checkpoint
from pipeline.recipe import Recipe
from pipeline.recipe_reader import parse_recipe
from pipeline.training.checkpoint_files import take_checkpoint
from pipeline.training.computation import set_computation
from pipeline.training.depth_control import DepthControl
from pipeline.training.engine import Engine, build_engine, set_halting, set_learning_rates, set_optimizer_settings
from pipeline.training.fingerprint import check_fingerprint, take_fingerprint
from pipeline.training.gate_health import GateHealth
from pipeline.training.guards import Guards
from pipeline.training.model_start import start_model
from pipeline.training.oversight import Oversight
from pipeline.training.phases import LearningRates
from pipeline.training.rank import init_distributed
from pipeline.training.saves_in_flight import SavesInFlight
from pipeline.training.stopping import StopRequests, StopSignals
from pipeline.training.strategy import read_strategy, zero_stage
from pipeline.training.universal import load_universal, universal_checkpoint
from pipeline.training.watchdog import Watchdog
from tests.conftest import tiny_recipe

SAVED = [("zero1", "fp32", "all"), ("zero2", "fp32", "all"), ("zero3", "fp32", "all"), ("zero1", "bf16", "all")]
SAVED += [("zero3", "bf16", "all"), ("zero1", "bf16", "gates")]
"""Strategy, precision, trained parameters."""
ELSEWHERE = {"zero1": ["zero1", "zero2", "zero2-offload"], "zero2": ["zero1"], "zero3": ["zero3", "zero3-offload"]}
"""Strategies that a checkpoint of each is loaded under; those that offload on the same number of ranks alone."""


def goes_on(world: int, precision: str, other: str) -> bool:
    """Whether it is tried in that world: each start of an engine takes its time."""
    return world == 2 or (not other.endswith("-offload") and (precision == "fp32" or world == 3))


ROWS = 12
"""Of a global batch: a multiple of 1, 2, 3 and 4 ranks."""
STEPS = 2
"""Before saving, and again after it."""


def recipe_of(folder: Path, strategy: str, precision: str) -> Recipe:
    """The strategy with torch's AdamW where DeepSpeed's own would be compiled, and all weights of stage 3 in parts."""
    content: dict[str, Any] = {**read_strategy(strategy), "zero_force_ds_cpu_optimizer": False}
    if zero_stage(content) == 3:
        content["zero_optimization"] |= {"stage3_param_persistence_threshold": 0}
    path = folder / f"{strategy}.json"
    if dist.get_rank() == 0:
        path.write_text(json.dumps(content))
    dist.barrier()
    recipe = tiny_recipe("elastic", folder)
    recipe["train"] |= {"strategy": str(path), "precision": precision, "micro_batch": 1, "global_batch": ROWS}
    return parse_recipe(recipe, "test")


def ready(engine: Engine, recipe: Recipe) -> Engine:
    set_halting(engine.module.config, recipe.train.phases[1])
    set_learning_rates(engine, LearningRates(3e-3, 1e-3))
    return engine


def steps(engine: Engine, first: int, count: int) -> list[float]:
    """Losses of optimizer steps, over all ranks; row r of step s is the same wherever it is computed."""
    losses = []
    world = dist.get_world_size()
    for number in range(first, first + count):
        total = torch.zeros((), dtype=torch.float64)
        for row in range(dist.get_rank(), ROWS, world):
            generator = torch.Generator().manual_seed(1000 * number + row)
            tokens = torch.randint(1, 300, (1, 33), generator=generator)
            output = engine(
                input_ids=tokens[:, :-1], shift_labels=tokens[:, 1:], ponder_weight=0.1, ponder_fraction=0.3
            )
            assert output.loss is not None
            engine.backward(output.loss)
            engine.step()
            total += output.loss.detach().double()
        dist.all_reduce(total)
        losses.append(total.item() / ROWS)
    return losses


def save(saves: SavesInFlight, engine: Engine, recipe: Recipe, trained: str, folder: Path) -> None:
    stage = zero_stage(read_strategy(recipe.train.strategy))
    state = TrainerState(
        step=STEPS,
        save_id="0",
        rows=STEPS * ROWS,
        tokens=STEPS * ROWS * 32,
        phase="halting",
        trained=trained,
        seed=7,
        recipe=recipe.resolved(),
        recipe_hash=recipe.hash(),
        manifest_hash="0",
        mlflow_run_id=None,
        world_size=dist.get_world_size(),
        zero_stage=stage,
        precision=recipe.train.precision,
        versions={},
        fingerprint=take_fingerprint(engine, recipe, dist.get_world_size(), stage),
    )
    saves.begin(
        time.monotonic(), lambda memory: take_checkpoint(engine, folder, state, {}, memory), lambda completed: None
    )


def regular(saves: SavesInFlight, recipe: Recipe, trained: str, folder: Path) -> dict[str, Any]:
    """Train, save, train on; and again from what was saved, as it was saved."""
    engine = ready(build_engine(recipe, start_model(recipe).train(), trained, dist.get_world_size()), recipe)
    steps(engine, 0, STEPS)
    save(saves, engine, recipe, trained, folder)
    states = moments(engine)
    losses = steps(engine, STEPS, STEPS)
    engine.destroy()
    engine = ready(build_engine(recipe, start_model(recipe).train(), trained, dist.get_world_size()), recipe)
    engine.load_checkpoint(str(folder), tag=f"step-{STEPS:08d}")
    set_optimizer_settings(engine, recipe.train.optimizer)
    again = steps(engine, STEPS, STEPS)
    engine.destroy()
    torch.save(states, folder / "moments.pt")
    return {"losses": losses, "again": again}


def universal(recipe: Recipe, trained: str, checkpoint: Checkpoint, tag: str) -> dict[str, Any]:
    """Load what was converted, and train on."""
    world = dist.get_world_size()
    model = load_model(checkpoint, hashes=False)
    set_computation(model, recipe)
    engine = ready(build_engine(recipe, model.train(), trained, world, universal=True), recipe)
    load_universal(engine, checkpoint.path.parent, tag)
    set_optimizer_settings(engine, recipe.train.optimizer)
    set_learning_rates(engine, LearningRates(3e-3, 1e-3))
    stage = zero_stage(read_strategy(recipe.train.strategy))
    check_fingerprint(engine, checkpoint, take_fingerprint(engine, recipe, world, stage))
    saved = torch.load(checkpoint.path.parent / "moments.pt")
    found = moments(engine)
    equal = found.keys() == saved.keys() and all(torch.equal(found[name], saved[name]) for name in saved)
    decays = {group["name"]: group["weight_decay"] for group in engine.optimizer.param_groups}
    losses = steps(engine, STEPS, STEPS)
    taken = sorted({float(state["step"]) for state in cast(Any, engine.optimizer).optimizer.state.values()})
    engine.destroy()
    return {"losses": losses, "equal": equal, "decays": decays, "taken": taken}


def moments(engine: Engine) -> dict[str, torch.Tensor]:
    """Masters and moments of all trained parameters, whole; collective."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    optimizer: Any = engine.optimizer
    if hasattr(optimizer, "_hp_optimizer_states_linked"):
        # DeepSpeed (0.19.8) looks for all groups' states after the first group's first step, when there are no others.
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()
    found = {}
    for name, weight in engine.module.named_parameters():
        if weight.requires_grad:
            found[name] = safe_get_full_fp32_param(weight)
            for key in ("exp_avg", "exp_avg_sq"):
                found[f"{name} {key}"] = safe_get_full_optimizer_state(weight, key)
    return {name: cast(torch.Tensor, value).detach().clone().flatten() for name, value in found.items()}


def main() -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    out, root = map(Path, sys.argv[1:])
    init_distributed(parse_recipe(tiny_recipe("elastic", root), "test"))
    rank, world = dist.get_rank(), dist.get_world_size()
    requests = StopRequests(StopSignals(), root, rank, 0, 0.0)
    settings = parse_recipe(tiny_recipe("elastic", root), "test").train.guards
    note = lambda kind, message, **fields: None  # noqa: E731
    saves = SavesInFlight(background=False)
    watchdog = Watchdog(0, lambda hang: None)
    oversight = Oversight(requests, watchdog, Guards(settings, note), GateHealth(3, note), saves, DepthControl(3))
    found: dict[str, Any] = {}
    for strategy, precision, trained in SAVED:
        name = f"{strategy} {precision} {trained}"
        folder = root / name.replace(" ", "-")
        tag = f"step-{STEPS:08d}.converted"
        if world == 2:
            folder.mkdir(exist_ok=True)
            found[name] = regular(saves, recipe_of(root, strategy, precision), trained, folder)
            checkpoint = open_checkpoint(folder / f"step-{STEPS:08d}")
            with universal_checkpoint(checkpoint, oversight, torch.device("cpu")) as made:
                if rank == 0:
                    shutil.copytree(folder / made, folder / tag)
            found[name]["left"] = sorted(path.name for path in folder.iterdir())
        checkpoint = open_checkpoint(folder / f"step-{STEPS:08d}")
        for other in ELSEWHERE[strategy]:
            if goes_on(world, precision, other):
                found[f"{name} -> {other}"] = universal(recipe_of(root, other, precision), trained, checkpoint, tag)
                gc.collect()
    if rank == 0:
        out.write_text(json.dumps(found))
    dist.barrier()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)
