"""One rank of `benchmarks.checkpoint_saving`: rounds of steps and saves by the training's own engine and writer.

torchrun --module benchmarks.checkpoint_saving_rank OUT FOLDER SHAPE TOKENS STEP_TOKENS ROUNDS SEED
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import time
import uuid
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.shapes import SHAPES
from pipeline.checkpoint import TrainerState
from pipeline.recipe import Recipe
from pipeline.recipe_reader import read_recipe
from pipeline.training.checkpoint_files import take_checkpoint
from pipeline.training.computation import set_computation
from pipeline.training.engine import Engine, build_engine, set_halting, set_learning_rates
from pipeline.training.model_start import start_model
from pipeline.training.phases import learning_rates
from pipeline.training.rank import init_distributed
from pipeline.training.saves_in_flight import Completed, SavesInFlight


def recipe_of(shape: str, tokens: int, ranks: int) -> Recipe:
    """pythia-70m-scratch in fp32, with the network's sizes as asked for and one row a rank and step."""
    hidden, layers, heads = SHAPES[shape]
    sizes = {
        "vocab_size": 50304,
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": max(2048, tokens),
    }
    fields = {
        "model.backbone": sizes,
        "tokenize.seq_len": tokens,
        "train.precision": "fp32",
        "train.micro_batch": 1,
        "train.global_batch": ranks,
        "train.vocabulary_chunk_tokens": 256,
    }
    return read_recipe("pythia-70m-scratch", [f"{name}={json.dumps(value)}" for name, value in fields.items()])


class Training:
    """An engine that takes steps and saves."""

    def __init__(self, shape: str, tokens: int, seed: int, folder: Path) -> None:
        """tokens: the most that a step has."""
        self._recipe = recipe_of(shape, tokens, int(os.environ["WORLD_SIZE"]))
        init_distributed(self._recipe)
        model = start_model(self._recipe)
        set_computation(model, self._recipe)
        self._engine: Engine = build_engine(self._recipe, model.train(), "all", dist.get_world_size())
        set_halting(self._engine.module.config, self._recipe.train.phases[0])
        set_learning_rates(self._engine, learning_rates(self._recipe.train, 10))
        generator = torch.Generator().manual_seed(seed + dist.get_rank())
        self._tokens = torch.randint(1, 50000, (1, tokens + 1), generator=generator)
        self._folder = folder

    def step(self, tokens: int) -> float:
        """Seconds of a step, from when all ranks begin it until all have taken it."""
        dist.barrier()
        began = time.perf_counter()
        inputs, labels = self._tokens[:, :tokens], self._tokens[:, 1 : tokens + 1]
        loss = self._engine(input_ids=inputs, shift_labels=labels, ponder_weight=0.1, ponder_fraction=0.1).loss
        self._engine.backward(loss)
        self._engine.step()
        dist.barrier()
        return time.perf_counter() - began

    def save(self, saves: SavesInFlight) -> tuple[float, list[Completed]]:
        """Begin a save; returns the seconds for which training stood still, and where it tells that it is complete."""
        state = TrainerState(
            step=0,
            save_id=uuid.uuid4().hex,
            rows=0,
            tokens=0,
            phase="",
            trained="all",
            seed=0,
            recipe={},
            recipe_hash="",
            manifest_hash="",
            mlflow_run_id=None,
            world_size=dist.get_world_size(),
            zero_stage=1,
            precision="fp32",
            versions={},
            fingerprint=None,
        )
        if dist.get_rank() == 0:
            shutil.rmtree(self._folder, ignore_errors=True)
        dist.barrier()
        began = time.perf_counter()
        completed: list[Completed] = []
        take = partial(take_checkpoint, self._engine, self._folder, state, {})
        saves.begin(time.monotonic(), take, completed.append)
        return time.perf_counter() - began, completed

    def in_flight(self, saves: SavesInFlight, completed: list[Completed]) -> bool:
        """Whether the save is still being written; the same on all ranks."""
        box = [not completed and not saves.failed]
        dist.broadcast_object_list(box, src=0)
        return box[0]


def main() -> None:
    logging.disable(logging.WARNING)
    out, folder, shape = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    tokens, step_tokens, rounds, seed = map(int, sys.argv[4:8])
    training = Training(shape, max(tokens, step_tokens), seed, folder)
    training.step(tokens)
    found: dict[str, Any] = {"step": training.step(step_tokens)}
    with SavesInFlight(background=True) as beside, SavesInFlight(background=False) as waiting:
        found["rounds"] = [one_round(training, tokens, beside, waiting) for _ in range(rounds + 1)][1:]
    if dist.get_rank() == 0:
        out.write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()


def one_round(training: Training, tokens: int, beside: SavesInFlight, waiting: SavesInFlight) -> dict[str, Any]:
    """Seconds of steps without a save and during one, and of both kinds of saves; the first round takes memory."""
    steps = [training.step(tokens)]
    copy, completed = training.save(beside)
    during = [training.step(tokens)]
    while training.in_flight(beside, completed):
        during.append(training.step(tokens))
    beside.wait()
    steps.append(training.step(tokens))
    stood_still, _ = training.save(waiting)
    written = {"seconds": completed[0].seconds, "bytes": completed[0].size} if completed else {}
    return {"steps": steps, "copy": copy, "during": during, "waiting": stood_still} | written


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)
