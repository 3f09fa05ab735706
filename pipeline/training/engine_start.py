"""An engine as a segment begins: built, and with the states of the checkpoint that the training goes on from."""

from __future__ import annotations

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from pipeline.checkpoint import FROZEN_FILE, Checkpoint, load_model
from pipeline.errors import WorldError
from pipeline.recipe import Recipe
from pipeline.training.checks import TrainingPlan
from pipeline.training.computation import set_computation
from pipeline.training.elastic import Loading
from pipeline.training.engine import Engine, build_engine, frozen_weights, set_optimizer_settings
from pipeline.training.fingerprint import check_fingerprint, take_fingerprint
from pipeline.training.model_start import start_model
from pipeline.training.oversight import Oversight
from pipeline.training.universal import load_universal, universal_checkpoint


def start_engine(
    recipe: Recipe,
    plan: TrainingPlan,
    trained: str,
    checkpoint: Checkpoint | None,
    oversight: Oversight,
    device: torch.device,
) -> tuple[Engine, dict[str, torch.Tensor]]:
    """The engine that trains the set `trained` from `checkpoint` on, or from the start; collective.

    Returns it with the fp32 weights of which it has rounded copies only (rank 0's; empty elsewhere). Raises
    `WorldError` when the checkpoint's states cannot be loaded or are not the network that was saved, `Stopped` where a
    rank is asked to stop meanwhile.
    """
    loading = _loading(plan, trained, checkpoint)
    if checkpoint is None:
        model = start_model(recipe)
    # The weights go on by themselves where the optimizer starts anew, and where its states are converted: those hold
    # nothing of frozen weights.
    elif loading is not Loading.AS_SAVED:
        model = load_model(checkpoint, hashes=False)
    else:
        model = start_model(recipe)
    set_computation(model, recipe)
    frozen = frozen_weights(recipe, model, trained) if dist.get_rank() == 0 else {}
    if frozen and checkpoint is not None and loading is not Loading.WEIGHTS:
        frozen = load_file(checkpoint.path / FROZEN_FILE)
    universal = loading is Loading.UNIVERSAL
    engine = build_engine(recipe, model.train(), trained, plan.world_size, universal=universal)
    if checkpoint is None:
        return engine, frozen
    if universal:
        with universal_checkpoint(checkpoint, oversight, device) as tag:
            load_universal(engine, checkpoint.path.parent, tag)
    elif loading is Loading.AS_SAVED:
        loaded, _ = engine.load_checkpoint(str(checkpoint.path.parent), tag=checkpoint.name)
        if loaded is None:  # DeepSpeed only warns, and would go on from the start
            raise WorldError(f"{checkpoint.path}: DeepSpeed finds no states for this rank in it")
    set_optimizer_settings(engine, recipe.train.optimizer)
    check_fingerprint(engine, checkpoint, take_fingerprint(engine, recipe, plan.world_size, plan.zero_stage))
    return engine, frozen


def _loading(plan: TrainingPlan, trained: str, checkpoint: Checkpoint | None) -> Loading:
    if checkpoint is None or checkpoint.state.trained != trained:
        return Loading.WEIGHTS
    # A checkpoint that this training saved itself is of its own world.
    of_the_plan = plan.resume_from is not None and checkpoint.name == plan.resume_from.name
    return plan.loading if of_the_plan else Loading.AS_SAVED
