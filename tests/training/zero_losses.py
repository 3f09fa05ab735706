"""One rank of a small training under many settings, an engine after another; the losses go into a JSON file.

`torchrun --module tests.training.zero_losses OUT`. One process for all settings: starting ranks is most of the time.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pipeline.recipe_reader import parse_recipe
from pipeline.training.computation import set_computation
from pipeline.training.engine import build_engine, set_halting, set_learning_rates
from pipeline.training.model_start import start_model
from pipeline.training.phases import LearningRates
from pipeline.training.rank import init_distributed
from tests.conftest import tiny_recipe

STEPS = 3
DEPTHS = ("learned", "none left")
PLAIN = {"vocabulary_chunk_tokens": 0}
CHUNK = 7
"""Tokens a chunk; micro-batches have 64."""


def settings() -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Depths, ZeRO stage, fields of the train section."""
    for depths in DEPTHS:
        yield depths, 0, PLAIN
        for stage in range(4):
            # Under ZeRO 3 a setting costs ten times as much.
            for skip in (False, True):
                kinds = ("none", "activation", "mlp", "layer", "pass") if depths == "learned" else ("none", "layer")
                for kind in kinds:
                    if stage == 3 and depths == "none left" and not skip:
                        continue
                    yield (
                        depths,
                        stage,
                        {"activation_checkpointing": kind, "skip_halted": skip, "vocabulary_chunk_tokens": CHUNK},
                    )


def train(depths: str, stage: int, fields: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Loss and mean depth of each step, means over the ranks; collective."""
    content = tiny_recipe("losses", Path("unused"))
    content["train"] |= {"strategy": f"zero{stage}", "global_batch": 4, **fields}
    content["model"]["halt_threshold"] = 0.45
    recipe = parse_recipe(content, "test")
    model = start_model(recipe)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("gates.") and ".logit." in name:  # tells tokens apart from the first step
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.6 * (parameter.ndim > 1))
    set_computation(model, recipe)
    engine = build_engine(recipe, model.train(), "all", 2)
    peak = recipe.train.optimizer.peak_lr
    set_learning_rates(engine, LearningRates(peak, peak))
    set_halting(engine.module.config, recipe.train.phases[1], recipe.train.skip_halted)
    losses, means = [], []
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(2 * step + dist.get_rank())
        tokens = torch.randint(1, 300, (2, 33), generator=generator)
        imposed = None
        if depths == "none left":
            # No token goes on after the first pass: on rank 1 alone, and in the second step on both.
            imposed = torch.randint(1, 4, (2, 32), generator=generator)
            if dist.get_rank() == 1 or step == 1:
                imposed = torch.ones_like(imposed)
        output = engine(
            input_ids=tokens[:, :-1],
            shift_labels=tokens[:, 1:],
            ponder_weight=0.1,
            ponder_fraction=0.3,
            imposed_depths=imposed,
        )
        engine.backward(output.loss)
        engine.step()
        assert output.loss is not None and output.depths is not None
        sums = torch.stack([output.loss.detach().double(), output.depths.double().mean()])
        dist.all_reduce(sums)
        losses.append(sums[0].item() / 2)
        means.append(sums[1].item() / 2)
    engine.destroy()
    return losses, means


def main() -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    init_distributed(parse_recipe(tiny_recipe("losses", Path("unused")), "test"))
    found = []
    for depths, stage, fields in settings():
        losses, means = train(depths, stage, fields)
        found.append({"depths": depths, "stage": stage, "fields": fields, "losses": losses, "mean_depths": means})
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(found))
    dist.barrier()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)
