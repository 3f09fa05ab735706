"""One rank of `benchmarks.checkpoint_saving`: rounds of steps and saves by the training's own engine and writer.

torchrun --module benchmarks.checkpoint_saving_rank OUT FOLDER SHAPE ROWS TOKENS ROUNDS SEED
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


def recipe_of(shape: str, rows: int, tokens: int, ranks: int) -> Recipe:
    """pythia-70m-scratch in fp32, with the network's sizes and the batch's as asked for."""
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
        "train.micro_batch": rows,
        "train.global_batch": rows * ranks,
        "train.vocabulary_chunk_tokens": 256,
    }
    return read_recipe("pythia-70m-scratch", [f"{name}={json.dumps(value)}" for name, value in fields.items()])


class Training:
    """An engine that takes steps and saves."""

    def __init__(self, shape: str, rows: int, tokens: int, seed: int, folder: Path) -> None:
        self._recipe = recipe_of(shape, rows, tokens, int(os.environ["WORLD_SIZE"]))
        init_distributed(self._recipe)
        model = start_model(self._recipe)
        set_computation(model, self._recipe)
        self._engine: Engine = build_engine(self._recipe, model.train(), "all", dist.get_world_size())
        set_halting(self._engine.module.config, self._recipe.train.phases[0])
        set_learning_rates(self._engine, learning_rates(self._recipe.train, 10))
        generator = torch.Generator().manual_seed(seed + dist.get_rank())
        self._tokens = torch.randint(1, 50000, (rows, tokens + 1), generator=generator)
        self._folder = folder

    def step(self) -> float:
        """Seconds of a step, from when all ranks begin it until all have taken it."""
        dist.barrier()
        began = time.perf_counter()
        inputs, labels = self._tokens[:, :-1], self._tokens[:, 1:]
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

    def in_flight(self, completed: list[Completed]) -> bool:
        """Whether the save is still being written; the same on all ranks."""
        box = [not completed]
        dist.broadcast_object_list(box, src=0)
        return box[0]


def main() -> None:
    logging.disable(logging.WARNING)
    out, folder, shape = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    rows, tokens, rounds, seed = map(int, sys.argv[4:8])
    training = Training(shape, rows, tokens, seed, folder)
    found = []
    with SavesInFlight(background=True) as beside, SavesInFlight(background=False) as waiting:
        for number in range(rounds + 1):
            steps = [training.step()]
            copy, completed = training.save(beside)
            during = [training.step()]
            while training.in_flight(completed):
                during.append(training.step())
            beside.wait()
            steps.append(training.step())
            stood_still, _ = training.save(waiting)
            if number and completed:  # a first round takes memory and warms up
                bytes_, seconds = completed[0].size, completed[0].seconds
                line = {"steps": steps, "copy": copy, "during": during, "seconds": seconds, "bytes": bytes_}
                found.append(line | {"blocking": stood_still})
    if dist.get_rank() == 0:
        out.write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)
