"""The DeepSpeed engine of a run: strategy file and recipe become one configuration, parameters become groups.

A strategy (ds_configs/) says how states are partitioned and nothing else; batch, precision and clipping come from the
recipe. A key that stands in both is refused, so that a number is never decided in two places.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol, cast

import torch

import ds_configs
from pipeline.data.order import accumulation_steps
from pipeline.errors import UserError
from pipeline.model import AdaPonderForCausalLM
from pipeline.model.modeling_adaponder import AdaPonderOutput
from pipeline.recipe import OptimizerSection, Recipe

FROM_RECIPE = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "bf16",
    "fp16",
    "optimizer",
    "scheduler",
)


class Engine(Protocol):
    """What training uses of a DeepSpeed engine, whose own types say less."""

    module: AdaPonderForCausalLM
    device: torch.device
    optimizer: torch.optim.Optimizer

    def __call__(self, **inputs: Any) -> AdaPonderOutput: ...
    def backward(self, loss: torch.Tensor | None) -> Any: ...
    def step(self) -> None: ...
    def get_global_grad_norm(self) -> float | None: ...
    def save_checkpoint(self, save_dir: str, tag: str, *, save_latest: bool) -> Any: ...
    def load_checkpoint(self, load_dir: str, tag: str) -> Any: ...
    def destroy(self) -> None: ...


def read_strategy(strategy: str) -> dict[str, Any]:
    """The DeepSpeed configuration called `strategy` in ds_configs/, or at that path.

    Raises `UserError` for an unknown name, a file that is not JSON, or a key that belongs to the recipe.
    """
    shipped = {path.stem: path for path in sorted(Path(ds_configs.__file__).parent.glob("*.json"))}
    path = Path(strategy) if strategy.endswith(".json") else shipped.get(strategy)
    if path is None or not path.is_file():
        raise UserError(
            f"train.strategy {strategy}: no such JSON file, and none of the shipped strategies ({', '.join(shipped)})"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"train.strategy {path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"train.strategy {path} is not a JSON object")
    if both := [key for key in FROM_RECIPE if key in content]:
        raise UserError(f"train.strategy {path} sets {', '.join(both)}, which the recipe decides: remove it there")
    return content


def zero_stage(strategy: dict[str, Any]) -> int:
    return int(strategy.get("zero_optimization", {}).get("stage", 0))


def engine_config(recipe: Recipe, world_size: int) -> dict[str, Any]:
    """The whole DeepSpeed configuration: the strategy, filled in from the recipe."""
    train = recipe.train
    return {
        **read_strategy(train.strategy),
        "train_batch_size": train.global_batch,
        "train_micro_batch_size_per_gpu": train.micro_batch,
        "gradient_accumulation_steps": accumulation_steps(train.micro_batch, train.global_batch, world_size),
        "gradient_clipping": train.optimizer.clip_grad_norm,
        "bf16": {"enabled": train.precision == "bf16"},
        # torch's AdamW is not on DeepSpeed's list of optimizers that it knows with ZeRO; ours are tested.
        "zero_allow_untested_optimizer": True,
        # Progress is this project's own; DeepSpeed's would print in between.
        "steps_per_print": 10**9,
    }


def parameter_groups(model: AdaPonderForCausalLM, optimizer: OptimizerSection) -> list[dict[str, Any]]:
    """Trainable parameters by (gates or backbone) x (decayed matrices, or biases and norms), empty groups left out.

    Each group carries `lr_factor`: its LR over the recipe's.
    """
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_gate = name.startswith("gates.")
        decayed = parameter.ndim >= 2
        group = groups.setdefault(
            f"{'gates' if is_gate else 'backbone'}_{'decay' if decayed else 'no_decay'}",
            {
                "params": [],
                "weight_decay": optimizer.weight_decay if decayed else 0.0,
                "lr_factor": optimizer.gate_lr_factor if is_gate else 1.0,
            },
        )
        group["params"].append(parameter)
    return [{**groups[name], "name": name} for name in sorted(groups)]


def build_engine(recipe: Recipe, model: AdaPonderForCausalLM, trained: str, world_size: int) -> Engine:
    """Wrap `model` for training the set of parameters `trained` ("all" or "gates"); collective."""
    import deepspeed

    for name, parameter in model.named_parameters():
        parameter.requires_grad = trained == "all" or name.startswith("gates.")
    settings = recipe.train.optimizer
    optimizer = torch.optim.AdamW(
        parameter_groups(model, settings),
        lr=settings.peak_lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        fused=torch.cuda.is_available(),
    )
    exact = {name: buffer.clone() for name, buffer in model.named_buffers() if buffer.is_floating_point()}
    initialized, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config=engine_config(recipe, world_size),
        dist_init_required=False,
    )
    engine = cast(Engine, initialized)
    # In bf16 DeepSpeed casts buffers too. RoPE's frequencies rounded to 8 bits turn far positions by whole radians,
    # and a released network would compute them exactly: training must as well.
    for name, buffer in engine.module.named_buffers():
        if name in exact:
            buffer.data = exact[name].to(buffer.device)
    return engine


def set_learning_rate(engine: Engine, rate: float) -> None:
    """Give every group its LR for the coming step."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate * group["lr_factor"]
