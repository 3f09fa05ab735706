"""The DeepSpeed engine of a run: strategy file and recipe become one configuration, parameters become groups.

A strategy (ds_configs/) says how states are partitioned and nothing else; batch, precision and clipping come from the
recipe. A key that stands in both is refused, so that a number is never decided in two places.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist

import ds_configs
from pipeline.data.order import accumulation_steps
from pipeline.errors import UserError
from pipeline.model import AdaPonderConfig, AdaPonderForCausalLM
from pipeline.model.modeling_adaponder import AdaPonderOutput
from pipeline.recipe import OptimizerSection, Phase, Recipe

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
    skipped_steps: int

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
    zero = content.get("zero_optimization") if isinstance(content, dict) else None
    if not isinstance(zero, dict) or zero.get("stage") not in (0, 1, 2, 3):
        raise UserError(f'train.strategy {path} must say {{"zero_optimization": {{"stage": 0, 1, 2 or 3}}}}')
    if both := [key for key in FROM_RECIPE if key in content]:
        raise UserError(f"train.strategy {path} sets {', '.join(both)}, which the recipe decides: remove it there")
    return content


def zero_stage(strategy: dict[str, Any]) -> int:
    return strategy["zero_optimization"]["stage"]


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
    """Wrap `model`, in fp32 on the CPU, for training the set of parameters `trained`: "all" or "gates"; collective."""
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
    in_bf16 = recipe.train.precision == "bf16"
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers() if buffer.is_floating_point()}
    trainable = [pair for pair in model.named_parameters() if in_bf16 and pair[1].requires_grad]
    weights = {name: weight.detach().clone() for name, weight in trainable}
    initialized, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config=engine_config(recipe, world_size),
        dist_init_required=False,
    )
    engine = cast(Engine, initialized)
    if in_bf16:
        # DeepSpeed casts the network first and makes the fp32 master weights from what is left: here they get back
        # what was rounded away. Buffers are cast too, and RoPE's frequencies in 8 bits turn far positions by whole
        # radians, where a released network computes them exactly.
        for name, parameter in engine.module.named_parameters():
            if name in weights:
                _set_master_weight(parameter, weights[name].to(engine.device))
        for name, buffer in engine.module.named_buffers():
            if name in buffers:
                buffer.data = buffers[name].to(buffer.device)
    return engine


def _set_master_weight(parameter: torch.nn.Parameter, weight: torch.Tensor) -> None:
    """Write this rank's share of the fp32 master of `parameter`."""
    from deepspeed.utils import safe_get_local_fp32_param, safe_set_full_fp32_param, safe_set_local_fp32_param

    if not hasattr(parameter, "ds_id"):
        safe_set_full_fp32_param(parameter, weight)
        return
    # ZeRO 3. DeepSpeed's way to set a whole parameter fails where the last rank's share is partly padding (0.19.8).
    share = torch.zeros_like(safe_get_local_fp32_param(parameter))
    own = weight.flatten()[dist.get_rank() * share.numel() :][: share.numel()]
    share[: own.numel()] = own
    safe_set_local_fp32_param(parameter, share)


def frozen_weights(recipe: Recipe, model: AdaPonderForCausalLM, trained: str) -> dict[str, torch.Tensor]:
    """Copies of the weights that stay frozen while `trained` is trained, where DeepSpeed would keep them rounded."""
    if recipe.train.precision == "fp32" or trained == "all":
        return {}
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if not name.startswith("gates.")}


def set_optimizer_settings(engine: Engine, settings: OptimizerSection) -> None:
    """Write the recipe's numbers into every group: a loaded checkpoint brings those it was saved with."""
    for group in engine.optimizer.param_groups:
        group["weight_decay"] = 0.0 if group["name"].endswith("_no_decay") else settings.weight_decay
        group["lr_factor"] = settings.gate_lr_factor if group["name"].startswith("gates_") else 1.0
        group["betas"] = (settings.beta1, settings.beta2)
        group["eps"] = settings.eps


def set_learning_rate(engine: Engine, rate: float) -> None:
    """Give every group its LR for the coming step."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate * group["lr_factor"]


def set_halting(config: AdaPonderConfig, phase: Phase, skip_halted: bool = False) -> None:
    """Switch the network of that configuration to the phase's halting.

    skip_halted: the same is computed for the active tokens alone.
    """
    halting = "skip" if skip_halted else "masked"
    config.halting = halting if phase.halting else "none"
