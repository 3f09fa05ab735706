"""One rank of real trainings whose peak of resident memory is read, one after another in one process.

`torchrun --module benchmarks.measured_memory OUT RECIPES`, where RECIPES is a file with resolved recipes by name as
JSON; rank 0 writes what all ranks measured to OUT. On the CPU and on Linux: the kernel counts.
"""

from __future__ import annotations

import ctypes
import gc
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.measurement import give_memory_back, resident
from launch.local import die_with_parent
from pipeline.recipe import Recipe
from pipeline.recipe_reader import parse_recipe
from pipeline.training.computation import set_computation
from pipeline.training.engine import build_engine, set_halting, set_learning_rates
from pipeline.training.model_start import start_model
from pipeline.training.phases import LearningRates
from pipeline.training.rank import init_distributed

STEPS = 2
"""The first makes AdamW's moments, the second meets them."""


class Peaks:
    """Peaks over the memory that was there before."""

    def __init__(self) -> None:
        _let_go()
        self._before = resident("VmRSS")
        self.found: dict[str, int] = {}

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts again from now
        yield
        self.found[part] = max(self.found.get(part, 0), resident("VmHWM") - self._before)


def measured(recipe: Recipe) -> dict[str, int]:
    """Bytes at the peak of each part of a training: start, micro-batches, the last one of a step, the step; collective.

    On top of what Python, torch and DeepSpeed take before there is a network. The tokens are random.
    """
    train, seq_len = recipe.train, recipe.tokenize.seq_len
    peaks = Peaks()
    with peaks.of("start"):
        model = start_model(recipe)
        set_computation(model, recipe)
        engine = build_engine(recipe, model.train(), train.phases[-1].trained, dist.get_world_size())
        del model
    phase = train.phases[-1]
    set_halting(engine.module.config, phase, train.skip_halted)
    set_learning_rates(engine, LearningRates(1e-5, 1e-5))
    generator = torch.Generator().manual_seed(dist.get_rank())
    count = train.global_batch // train.micro_batch // dist.get_world_size()
    for _ in range(STEPS):
        for number in range(count):
            rows = torch.randint(1, 4096, (train.micro_batch, seq_len + 1), generator=generator)
            with peaks.of("last micro-batch" if number == count - 1 else "micro-batches"):
                loss = engine(
                    input_ids=rows[:, :-1],
                    shift_labels=rows[:, 1:],
                    ponder_weight=phase.ponder_weight,
                    ponder_fraction=phase.ponder_fraction,
                    hold_depth=phase.target_depth is not None,
                ).loss
                engine.backward(loss)
                del loss
            with peaks.of("step"):
                engine.step()
    engine.destroy()
    del engine
    return peaks.found


def _let_go() -> None:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def main() -> None:
    die_with_parent()
    give_memory_back()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    out, recipes = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    parsed = {name: parse_recipe(content, name) for name, content in recipes.items()}
    init_distributed(next(iter(parsed.values())))
    found: dict[str, Any] = {}
    for name, recipe in parsed.items():
        mine = measured(recipe)
        ranks: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(ranks, mine)
        found[name] = ranks
    if dist.get_rank() == 0:
        out.write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()


if __name__ == "__main__":
    code = 1
    try:
        main()
        code = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
