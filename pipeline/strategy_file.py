"""A strategy of ds_configs/ as a file: how states are split over the ranks and where they are kept.

What the recipe adds to it, and whether the two go together, is in `pipeline.training.strategy`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ds_configs
from pipeline.errors import UserError

FROM_RECIPE = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "bf16",
    "fp16",
    "torch_autocast",
    "data_types",
    "optimizer",
    "scheduler",
    "checkpoint",
)
OFFLOADS = ("offload_optimizer", "offload_param")


def shipped_strategies() -> dict[str, Path]:
    """The strategies that come with the project, by name."""
    files = sorted(Path(ds_configs.__file__).parent.glob("*.json"), key=lambda path: path.stem)
    return {path.stem: path for path in files}


def read_strategy(strategy: str) -> dict[str, Any]:
    """The DeepSpeed configuration called `strategy` in ds_configs/, or at that path.

    Raises `UserError` for an unknown name, a file that is not JSON, or a key that belongs to the recipe.
    """
    shipped = shipped_strategies()
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
    both = [key for key in FROM_RECIPE if key in content]
    both += [f"zero_optimization.{part}.nvme_path" for part in OFFLOADS if "nvme_path" in (zero.get(part) or {})]
    if both:
        raise UserError(f"train.strategy {path} sets {', '.join(both)}, which the recipe decides: remove it there")
    return content


def zero_stage(strategy: dict[str, Any]) -> int:
    return strategy["zero_optimization"]["stage"]


def offload_device(strategy: dict[str, Any], part: str = "offload_optimizer") -> str:
    """Where the optimizer's states (or with part="offload_param" the weights) are kept: none (the GPU), cpu or nvme."""
    return (strategy["zero_optimization"].get(part) or {}).get("device", "none")


def keeps_states_on_nvme(strategy: str) -> bool:
    """Whether the strategy with that name or path keeps anything on an NVMe disk."""
    content = read_strategy(strategy)
    return "nvme" in [offload_device(content, part) for part in OFFLOADS]


def uses_cpu_adam(strategy: dict[str, Any]) -> bool:
    """Whether AdamW runs on the CPU in DeepSpeed's own code, and not in torch's, which is slower and needs no compiler
    (DeepSpeed's field zero_force_ds_cpu_optimizer: false)."""
    return offload_device(strategy) != "none" and strategy.get("zero_force_ds_cpu_optimizer", True)
