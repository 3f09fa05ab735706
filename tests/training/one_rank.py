"""Small trainings on one rank, an engine after another; what was found goes into a JSON file.

`torchrun --nproc-per-node 1 --module tests.training.one_rank OUT`.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from pathlib import Path
from typing import Any

import torch

from pipeline.recipe_reader import parse_recipe
from pipeline.training import fewer_copies
from pipeline.training.rank import init_distributed
from tests.conftest import tiny_recipe
from tests.training.strategy_runs import engine_for, master, steps

FIELDS = {"precision": "fp32", "ranks": 1, "global_batch": 4}
"""Two micro-batches a step."""


def trained(out: Path, strategy: str) -> dict[str, Any]:
    """Losses and gradient norms of three steps, the weights, and the last step again after loading."""
    engine = engine_for(out, strategy, **FIELDS)
    norms, losses = [], []
    for step in range(3):
        if step == 2:
            engine.save_checkpoint(str(out.parent), tag=strategy, save_latest=False)
        losses += steps(engine, 2 * step, 2)
        norms.append(float(engine.get_global_grad_norm() or 0.0))
    weights = sum(master(weight).numel() for weight in engine.module.parameters())
    saved = sum(path.stat().st_size for path in (out.parent / strategy).glob("*optim_states.pt"))
    found = {"losses": losses, "norms": norms, "saved": saved, "weights": weights}
    engine.destroy()
    engine = engine_for(out, strategy, **FIELDS)
    engine.load_checkpoint(str(out.parent), tag=strategy)
    found["again"] = steps(engine, 4, 2)
    # Gradients that are no numbers: the step is skipped and the weights stay.
    before = {name: master(weight) for name, weight in engine.module.named_parameters()}
    tokens = torch.arange(66).view(2, 33)
    for factor in (1.0, math.nan):
        output = engine(input_ids=tokens[:, :-1], shift_labels=tokens[:, 1:], ponder_weight=0.0, ponder_fraction=0.0)
        assert output.loss is not None
        engine.backward(output.loss * factor)
        engine.step()
    found["skipped"] = engine.skipped_steps
    named = engine.module.named_parameters()
    found["moved"] = max((master(weight) - before[name]).abs().max().item() for name, weight in named)
    engine.destroy()
    return found


def norms() -> dict[str, float]:
    """Of 3 million values with a few large ones, by this project and in fp64, and where one is not finite."""
    values = torch.randn(3_000_001, generator=torch.Generator().manual_seed(0))
    values[::100_003] *= 1e3
    parts = list(values.split(1_234_567))
    padding = torch.ones(5)
    padding._zero_padding = True  # pyright: ignore[reportAttributeAccessIssue]
    found = {"ours": fewer_copies._norm([*parts, padding]).item(), "exact": values.double().norm().item()}
    values[7] = math.inf
    return found | {"not_finite": fewer_copies._norm([values]).item()}


def main() -> None:
    logging.disable(logging.WARNING)
    out = Path(sys.argv[1])
    init_distributed(parse_recipe(tiny_recipe("one-rank", Path("unused")), "test"))
    found: dict[str, Any] = {strategy: trained(out, strategy) for strategy in ("zero1", "zero2", "zero3")}
    out.write_text(json.dumps(found | {"norm": norms()}))


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)
