"""One step of a recipe's training on made-up rows: what a preflight takes to see whether it fits and runs."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist

from pipeline.recipe import Recipe
from pipeline.training.computation import set_computation
from pipeline.training.engine import build_engine
from pipeline.training.model_start import start_model
from pipeline.training.rank import init_distributed


def mock_step(recipe: Recipe) -> dict[str, Any]:
    """Build the engine, run forward and backward at full depth, and step; collective, in a group that is joined.

    The recipe's phase that trains most, its micro batch, and no more micro-batches than show what adding up gradients
    takes. Returns {"seconds": of the step, "peak_bytes": of this rank, on the GPU where there is one, "device_bytes":
    the GPU's memory or 0, "finite": whether the loss is}.
    """
    init_distributed(recipe)
    train, world_size = recipe.train, dist.get_world_size()
    accumulated = min(2, max(1, train.global_batch // (train.micro_batch * world_size)))
    batch = accumulated * train.micro_batch * world_size
    recipe = recipe.model_copy(update={"train": train.model_copy(update={"global_batch": batch})})
    phase = next((phase for phase in train.phases if phase.trained == "all"), train.phases[-1])
    model = start_model(recipe)
    set_computation(model, recipe)
    engine = build_engine(recipe, model.train(), phase.trained, world_size)
    engine.module.config.halting = "none"
    device = engine.device
    generator = torch.Generator().manual_seed(dist.get_rank())
    rows = torch.randint(
        engine.module.config.vocab_size, (train.micro_batch, recipe.tokenize.seq_len + 1), generator=generator
    )
    inputs, labels = rows[:, :-1].contiguous().to(device), rows[:, 1:].contiguous().to(device)
    began = time.perf_counter()
    finite = True
    for _ in range(accumulated):
        output = engine(
            input_ids=inputs,
            shift_labels=labels,
            ponder_weight=phase.ponder_weight,
            ponder_fraction=phase.ponder_fraction,
            hold_depth=phase.target_depth is not None,
        )
        loss = cast(torch.Tensor, output.loss)
        engine.backward(loss)
        engine.step()
        finite = finite and math.isfinite(loss.item())
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - began
    engine.destroy()
    return {
        "seconds": seconds,
        "peak_bytes": _peak_bytes(device),
        "device_bytes": torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0,
        "finite": finite,
    }


def _peak_bytes(device: torch.device) -> int:
    """What the allocator held at most; on a CPU the most that the process ever had in memory (0 where unknown)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)
