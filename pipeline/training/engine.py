"""The DeepSpeed engine of a segment: the network's trained parameters in groups, their exact start, their LRs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist

from pipeline.heavy_imports import import_deepspeed
from pipeline.model import AdaPonderConfig, AdaPonderForCausalLM
from pipeline.model.modeling_adaponder import AdaPonderOutput
from pipeline.recipe import Recipe
from pipeline.recipe_train import OptimizerSection, Phase
from pipeline.trained_parameters import is_trained
from pipeline.training.fewer_copies import spare_copies
from pipeline.training.phases import LearningRates
from pipeline.training.strategy import engine_config, read_strategy, uses_cpu_adam


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


def parameter_groups(model: AdaPonderForCausalLM, optimizer: OptimizerSection) -> list[dict[str, Any]]:
    """Trainable parameters by (gates or backbone) x (decayed matrices, or biases and norms), empty groups left out."""
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
            },
        )
        group["params"].append(parameter)
    return [{**groups[name], "name": name} for name in sorted(groups)]


def build_engine(
    recipe: Recipe, model: AdaPonderForCausalLM, trained: str, world_size: int, *, universal: bool = False
) -> Engine:
    """Wrap `model`, in fp32 on the CPU, for training the set of parameters `trained` (`Phase.trained`); collective.

    universal: it will load a universal checkpoint (`pipeline.training.universal`).
    """
    deepspeed = import_deepspeed()
    for name, parameter in model.named_parameters():
        parameter.requires_grad = is_trained(trained, name)
    settings = recipe.train.optimizer
    optimizer = _adamw(parameter_groups(model, settings), settings, read_strategy(recipe.train.strategy))
    in_bf16 = recipe.train.precision == "bf16"
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers() if buffer.is_floating_point()}
    trainable = [pair for pair in model.named_parameters() if in_bf16 and pair[1].requires_grad]
    weights = {name: weight.detach().clone() for name, weight in trainable}
    with _one_kind_of_zero_optimizer():
        initialized, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            config=engine_config(recipe, world_size, universal=universal),
            dist_init_required=False,
        )
    engine = cast(Engine, initialized)
    assert type(engine.optimizer).__name__ != "BF16_Optimizer", "its checkpoints could not be read back"
    _keep_grad_norm(initialized)
    if engine.device.type == "cpu":
        spare_copies(engine.optimizer)
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


@contextmanager
def _one_kind_of_zero_optimizer() -> Iterator[None]:
    """Give ZeRO 1 with gradients added up in fp32 the optimizer that it has otherwise and that stages 2 and 3 have.

    In bf16 DeepSpeed (0.19.8) takes its BF16_Optimizer there, which computes the same, but whose states
    DeepSpeed's own zero_to_fp32 cannot read back.
    """
    from deepspeed.runtime import engine

    choose = engine.DeepSpeedEngine._do_optimizer_sanity_check

    def choose_zero(self: Any, basic_optimizer: Any) -> Any:
        chosen = choose(self, basic_optimizer)
        return engine.ZERO_OPTIMIZATION if chosen == engine.BFLOAT16 else chosen

    engine.DeepSpeedEngine._do_optimizer_sanity_check = choose_zero
    try:
        yield
    finally:
        engine.DeepSpeedEngine._do_optimizer_sanity_check = choose


def _keep_grad_norm(engine: Any) -> None:
    """Without ZeRO DeepSpeed (0.19.8) clips in fp32 by the gradient's norm over all ranks and then forgets it."""
    from deepspeed.runtime.utils import clip_grad_norm_

    def clip() -> None:
        parameters = engine.module.parameters()
        engine._global_grad_norm = clip_grad_norm_(parameters, engine.gradient_clipping(), mpu=engine.mpu)

    engine.clip_fp32_gradients = clip


def _adamw(groups: list[dict[str, Any]], settings: OptimizerSection, strategy: dict[str, Any]) -> torch.optim.Optimizer:
    """AdamW where the strategy keeps its states; DeepSpeed's own on the CPU is compiled there at its first use."""
    numbers = {"lr": settings.peak_lr, "betas": (settings.beta1, settings.beta2), "eps": settings.eps}
    if not uses_cpu_adam(strategy):
        return torch.optim.AdamW(groups, **numbers, fused=True)
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    return DeepSpeedCPUAdam(groups, **numbers, adamw_mode=True)


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
    if recipe.train.precision == "fp32":
        return {}
    weights = model.named_parameters()
    return {name: weight.detach().clone() for name, weight in weights if not is_trained(trained, name)}


def set_optimizer_settings(engine: Engine, settings: OptimizerSection) -> None:
    """Write the recipe's numbers into every group: a loaded checkpoint brings those it was saved with."""
    for group in engine.optimizer.param_groups:
        group["weight_decay"] = 0.0 if group["name"].endswith("_no_decay") else settings.weight_decay
        group["betas"] = (settings.beta1, settings.beta2)
        group["eps"] = settings.eps
    if hasattr(engine.optimizer, "clip_grad"):
        cast(Any, engine.optimizer).clip_grad = settings.clip_grad_norm


def set_learning_rates(engine: Engine, rates: LearningRates) -> None:
    """Give every group its LR for the coming step."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rates.gates if group["name"].startswith("gates_") else rates.backbone


def set_halting(config: AdaPonderConfig, phase: Phase, skip_halted: bool = False) -> None:
    """Switch the network of that configuration to the phase's halting.

    skip_halted: the same is computed for the active tokens alone.
    """
    halting = "skip" if skip_halted else "masked"
    config.halting = halting if phase.halting else "none"
