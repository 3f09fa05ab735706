"""One rank of steps under several ZeRO stages in which rank 1 sleeps; what rank 0 was told goes into a JSON file.

`torchrun --module tests.training.slow_ranks OUT`. One process for all stages: starting ranks is most of the time.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist

from pipeline.recipe_reader import parse_recipe
from pipeline.training.rank import init_distributed
from pipeline.training.rank_times import RankTimes
from pipeline.training.step_clock import StepClock
from tests.conftest import tiny_recipe
from tests.training.strategy_runs import engine_for

STAGES = ("zero0", "zero1", "zero3")
"""Stage 2 does what 1 does."""
STEPS = 15
SLEEPS = range(2, 9)
"""Steps in which rank 1 sleeps."""
SLEEP_SECONDS = 0.2
"""In each pass, of which a step has three."""


def run(out: Path, stage: str) -> dict[str, Any]:
    """By step what was found, the gradient norm and how long the parts took on this rank; the notes; collective."""
    engine = engine_for(out, stage, precision="fp32", global_batch=4)
    told: list[Any] = []
    clock = StepClock(engine.device)
    times = RankTimes(1, 3.0, engine.device, lambda kind, message, **fields: told.append([kind, message, fields]))
    asleep = False

    def sleep(*_: Any) -> None:
        if asleep and dist.get_rank() == 1:
            time.sleep(SLEEP_SECONDS)

    # Between the layers: under ZeRO 3 the other rank waits in the middle of its forward pass.
    engine.module.gpt_neox.layers[1].register_forward_pre_hook(sleep)
    looks, norms, lengths = [], [], []
    for step in range(1, STEPS + 1):
        asleep = step in SLEEPS
        clock.begin()
        with times.watching(step):
            generator = torch.Generator().manual_seed(2 * step + dist.get_rank())
            tokens = torch.randint(1, 300, (2, 33), generator=generator)
            with clock.part("forward"):
                output = engine(
                    input_ids=tokens[:, :-1], shift_labels=tokens[:, 1:], ponder_weight=0.0, ponder_fraction=0.0
                )
            with clock.part("backward"):
                engine.backward(output.loss)
            with clock.part("optimizer"):
                engine.step()
        times.look(step, clock.worked)
        looks.append(times.found())
        lengths.append(clock.worked)
        norms.append(float(cast(float, engine.get_global_grad_norm())))
    assert times.found() == {}
    engine.destroy()
    return {"looks": looks, "told": told, "norms": norms, "lengths": lengths}


def main() -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    init_distributed(parse_recipe(tiny_recipe("slow", Path("unused")), "test"))
    out = Path(sys.argv[1])
    found = {stage: run(out, stage) for stage in STAGES}
    if dist.get_rank() == 0:
        out.write_text(json.dumps(found))
    dist.barrier()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)
