"""One rank of small trainings under each strategy, an engine after another; what was found goes into a JSON file.

`torchrun --module tests.training.strategy_runs OUT`. One process for all of them: starting ranks is most of the time.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist

from pipeline.recipe_reader import parse_recipe
from pipeline.training.engine import Engine, build_engine, set_halting, set_learning_rates
from pipeline.training.model_start import start_model
from pipeline.training.phases import LearningRates
from pipeline.training.rank import init_distributed
from pipeline.training.strategy import read_strategy, zero_stage
from tests.conftest import tiny_recipe

STRATEGIES = ("zero1", "zero2", "zero3", "zero2-offload", "zero3-offload")
SUMS = ("bf16", "fp32")
MICRO_BATCHES = 8
"""A rank and step, where gradients are added up; a power of two, by which bf16 is divided exactly."""
PATTERN = ["gpt_neox.embed_in.weight"]


def engine_for(
    out: Path, strategy: str, trained: str = "all", backbone: dict[str, int] | None = None, **fields: Any
) -> Engine:
    """An engine of the tiny network; collective.

    The strategies are the shipped ones with small buckets, which would hide the states otherwise, and torch's AdamW in
    the place of DeepSpeed's on the CPU, which takes a minute to compile.
    """
    content: dict[str, Any] = {**read_strategy(strategy), "zero_force_ds_cpu_optimizer": False}
    content["zero_optimization"] |= {"reduce_bucket_size": 1000, "allgather_bucket_size": 1000}
    if zero_stage(content) == 3:
        content["zero_optimization"] |= {"stage3_param_persistence_threshold": 0, "stage3_prefetch_bucket_size": 0}
    path = out.with_name(f"{strategy}.json")
    if dist.get_rank() == 0:
        path.write_text(json.dumps(content))
    dist.barrier()
    recipe = tiny_recipe("strategies", Path("unused"))
    recipe["model"]["backbone"] |= backbone or {}
    recipe["train"] |= {"strategy": str(path), **fields}
    parsed = parse_recipe(recipe, "test")
    engine = build_engine(parsed, start_model(parsed).train(), trained, dist.get_world_size())
    set_halting(engine.module.config, parsed.train.phases[0])
    set_learning_rates(engine, LearningRates(3e-3, 3e-3))
    return engine


def micro_batch(engine: Engine, number: int) -> float:
    """Forward and backward of a seeded micro-batch; returns this rank's loss."""
    generator = torch.Generator().manual_seed(10 * number + dist.get_rank())
    tokens = torch.randint(1, 300, (2, 33), generator=generator)
    output = engine(input_ids=tokens[:, :-1], shift_labels=tokens[:, 1:], ponder_weight=0.0, ponder_fraction=0.0)
    assert output.loss is not None
    engine.backward(output.loss)
    return output.loss.item()


def steps(engine: Engine, first: int, count: int) -> list[float]:
    losses = []
    for number in range(first, first + count):
        losses.append(micro_batch(engine, number))
        engine.step()
    return losses


def master(weight: torch.nn.Parameter) -> torch.Tensor:
    """A copy of the whole fp32 master of `weight`, which stage 0 does not have beside it; collective."""
    from deepspeed.utils import safe_get_full_fp32_param

    found = safe_get_full_fp32_param(weight)
    return (weight.detach() if found is None else found).clone()


def gradient(out: Path, strategy: str, sums: str, micro_batches: int) -> dict[str, torch.Tensor]:
    """The gradient of the same micro-batch `micro_batches` times, averaged over them and the ranks; collective."""
    from deepspeed.utils import safe_get_full_grad

    fields = {"precision": "bf16", "grad_accum_dtype": sums, "global_batch": 4 * micro_batches}
    engine = engine_for(out, strategy, **fields)
    for number in range(micro_batches):
        micro_batch(engine, 0)
        if number < micro_batches - 1:
            engine.step()
    named = engine.module.named_parameters()
    found = {name: cast(torch.Tensor, safe_get_full_grad(weight)).float().clone() for name, weight in named}
    engine.destroy()
    return found


def relative_error(found: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> float:
    wrong = sum((found[name] - reference[name]).double().square().sum().item() for name in reference)
    return (wrong / sum(weight.double().square().sum().item() for weight in reference.values())) ** 0.5


def saved_and_resumed(out: Path, strategy: str, sums: str) -> dict[str, Any]:
    """Losses of three steps, and of the last one again after loading what was saved before it; collective."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    fields: dict[str, Any] = {"precision": "bf16", "grad_accum_dtype": sums, "global_batch": 4}
    engine = engine_for(out, strategy, **fields)
    losses = steps(engine, 0, 2)
    masters = {name: master(weight) for name, weight in engine.module.named_parameters()}
    tag = f"{strategy}-{sums}"
    engine.save_checkpoint(str(out.parent), tag=tag, save_latest=False)
    losses += steps(engine, 2, 1)
    engine.destroy()
    engine = engine_for(out, strategy, **fields)
    engine.load_checkpoint(str(out.parent), tag=tag)
    (again,) = steps(engine, 2, 1)
    engine.destroy()
    read = get_fp32_state_dict_from_zero_checkpoint(str(out.parent), tag=tag)
    assert read is not None
    equal = set(read) == set(masters) and all(torch.equal(torch.as_tensor(read[name]), masters[name]) for name in read)
    return {"losses": losses, "again": again, "read_back": equal}


def state_bytes(out: Path, strategy: str, sums: str) -> dict[str, int]:
    """Bytes of all tensors that live between two micro-batches because of an engine; collective."""
    before = live_bytes()
    # Wider than elsewhere: beside the states, what tensors there are by number counts for little.
    backbone = {"hidden_size": 64, "intermediate_size": 256}
    engine = engine_for(out, strategy, backbone=backbone, precision="bf16", grad_accum_dtype=sums, global_batch=8)
    # A step of two micro-batches, for AdamW's moments, and the first of the next; twice, since what is alive for a
    # moment only, in another thread, is not there both times.
    alive = []
    for number in range(5):
        micro_batch(engine, number)
        if number in (2, 4):
            alive.append(live_bytes() - before)
        if number < 4:
            engine.step()
    sizes = [getattr(weight, "ds_numel", weight.numel()) for weight in engine.module.parameters()]
    found = {"parameters": sum(sizes), "largest": max(sizes), "bytes": min(alive)}
    engine.destroy()
    return found


def live_bytes() -> int:
    gc.collect()
    sizes: dict[int, int] = {}
    for found in gc.get_objects():
        if isinstance(found, torch.Tensor) and found.device.type == "cpu":
            for tensor in (found, found.grad if found.is_leaf else None):
                if tensor is not None:
                    sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(sizes.values())


def trained_by_pattern(out: Path, strategy: str, precision: str) -> dict[str, Any]:
    """Losses of four steps that train the embedding alone, and which weights they changed; collective."""
    engine = engine_for(out, strategy, " ".join(PATTERN), precision=precision, global_batch=4)
    named = dict(engine.module.named_parameters())
    trainable = {name for name, weight in named.items() if weight.requires_grad}
    before = {name: master(named[name]) for name in trainable}
    losses = steps(engine, 0, 4)
    moved = {name: (master(named[name]) - before[name]).abs().max().item() for name in trainable}
    engine.destroy()
    return {"losses": losses, "moved": moved}


def main() -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    out = Path(sys.argv[1])
    init_distributed(parse_recipe(tiny_recipe("strategies", Path("unused")), "test"))
    found: dict[str, Any] = {"gradient_error": {}, "states": {}, "resumed": {}, "pattern": {}}
    for strategy in STRATEGIES:
        for sums in SUMS:
            run = f"{strategy} {sums}"
            found["states"][run] = state_bytes(out, strategy, sums)
            if sums == "fp32" or strategy == "zero1":  # which the losses of all are compared with
                found["resumed"][run] = saved_and_resumed(out, strategy, sums)
            if strategy != "zero3-offload":  # its sums are zero3's
                many, one = (gradient(out, strategy, sums, count) for count in (MICRO_BATCHES, 1))
                found["gradient_error"][run] = relative_error(many, one)
    for strategy in ("zero0", "zero1", "zero3"):
        for precision in ("fp32", "bf16"):
            if (strategy, precision) != ("zero0", "bf16"):
                found["pattern"][f"{strategy} {precision}"] = trained_by_pattern(out, strategy, precision)
    if dist.get_rank() == 0:
        out.write_text(json.dumps(found))
    dist.barrier()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)
