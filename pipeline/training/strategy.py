"""The DeepSpeed configuration of a run: a strategy file of ds_configs/, filled in from the recipe.

A strategy says how states are split over the ranks and where they are kept, and nothing else; batch, precision and
clipping come from the recipe. A key that stands in both is refused, so that a number is never decided in two places.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from pipeline.data.order import accumulation_steps
from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.strategy_file import (
    OFFLOADS,
    keeps_states_on_nvme,
    offload_device,
    read_strategy,
    uses_cpu_adam,
    zero_stage,
)
from pipeline.training.fewer_copies import cpu_communication

_NO_NVME_PATH = "train.strategy {} keeps states on an NVMe disk: name a folder there, train.nvme_path"


def check_strategy(recipe: Recipe, here: bool = True) -> int:
    """The ZeRO stage of the recipe's strategy; `UserError` where the two contradict each other, or where this machine
    lacks what it needs and the training is to run `here`."""
    train = recipe.train
    strategy = read_strategy(train.strategy)
    stage = zero_stage(strategy)
    if stage == 0 and train.precision == "bf16":
        raise UserError(
            f"train.strategy {train.strategy} with train.precision bf16: DeepSpeed without ZeRO trains bf16 with "
            "another optimizer, whose states cannot be read back; take zero1, or fp32"
        )
    if not here:
        if keeps_states_on_nvme(train.strategy) and not train.nvme_path:
            raise UserError(_NO_NVME_PATH.format(train.strategy))
        return stage
    if uses_cpu_adam(strategy) and shutil.which(compiler := os.environ.get("CXX", "g++")) is None:
        raise UserError(
            f"train.strategy {train.strategy} runs AdamW on the CPU, which DeepSpeed compiles, and {compiler} is not "
            "found: install it, name another in CXX, or set zero_force_ds_cpu_optimizer to false in a strategy of your "
            "own for torch's slower AdamW"
        )
    if keeps_states_on_nvme(train.strategy):
        _check_nvme(train.strategy, train.nvme_path)
    return stage


def _check_nvme(strategy: str, nvme_path: str) -> None:
    if not nvme_path:
        raise UserError(_NO_NVME_PATH.format(strategy))
    if not Path(nvme_path).is_dir():
        raise UserError(f"train.nvme_path {nvme_path}: no such folder on this machine")
    # DeepSpeed talks on stdout from its import on, and tells on stderr what it finds missing.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        from deepspeed.accelerator import get_accelerator

        accelerator = get_accelerator()
        builder = accelerator.create_op_builder("AsyncIOBuilder") if accelerator else None
        can_read_nvme = builder is not None and builder.is_compatible()
    if not can_read_nvme:
        raise UserError(
            f"train.strategy {strategy}: DeepSpeed reads and writes NVMe disks by libaio, which is not installed here "
            "with its headers (Debian: libaio-dev)"
        )


def engine_config(recipe: Recipe, world_size: int, *, universal: bool = False) -> dict[str, Any]:
    """The whole DeepSpeed configuration: the strategy, filled in from the recipe.

    universal: what is loaded is a universal checkpoint.
    """
    train = recipe.train
    strategy = read_strategy(train.strategy)
    for part in OFFLOADS:
        if offload_device(strategy, part) == "nvme":
            strategy["zero_optimization"][part]["nvme_path"] = train.nvme_path
    if not torch.cuda.is_available():
        stage = strategy["zero_optimization"]["stage"]
        strategy["zero_optimization"] = cpu_communication(stage) | strategy["zero_optimization"]
    return {
        **strategy,
        "train_batch_size": train.global_batch,
        "train_micro_batch_size_per_gpu": train.micro_batch,
        "gradient_accumulation_steps": accumulation_steps(train.micro_batch, train.global_batch, world_size),
        "gradient_clipping": train.optimizer.clip_grad_norm,
        "bf16": {"enabled": train.precision == "bf16"},
        "data_types": {"grad_accum_dtype": train.grad_accum_dtype or train.precision},
        # torch's AdamW is not on DeepSpeed's list of optimizers that it knows with ZeRO; ours are tested.
        "zero_allow_untested_optimizer": True,
        # Progress is this project's own; DeepSpeed's would print in between.
        "steps_per_print": 10**9,
        "checkpoint": {"load_universal": universal},
    }
