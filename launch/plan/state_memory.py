"""What a training's states take in memory on each rank: weights, gradients, fp32 master weights and AdamW's moments.

`python -m launch.plan.state_memory` prints the tables of ds_configs/README.md. Activations and DeepSpeed's
buckets for communication come on top.
"""

from __future__ import annotations

from dataclasses import dataclass

from launch.plan.parameters import architecture_parameters
from launch.plan.pythia import PYTHIA

WEIGHTS, MASTERS_AND_MOMENTS, FP32_GRADIENTS = 2, 12, 4
"""Bytes a parameter in bf16 training: bf16 weights; fp32 master weights and two moments; gradients for AdamW."""
GRADIENT_SUMS = {"bf16": 2, "fp32": 4}
"""Bytes a parameter of gradients, by `train.grad_accum_dtype`."""

TABLE_SIZES = ("410M", "1.4B", "2.8B")
RANKS = (2, 8, 64)


@dataclass(frozen=True)
class StateMemory:
    """Bytes of states that one rank keeps while it trains."""

    gpu: float
    host: float
    """In the machine's main memory."""


def state_memory(
    parameters: int,
    stage: int,
    ranks: int,
    grad_accum_dtype: str = "bf16",
    *,
    offload: bool = False,
) -> StateMemory:
    """States of a network of `parameters` under ZeRO `stage` on `ranks` ranks, all of it trained, in bf16.

    offload: as in zero2-offload and zero3-offload. There DeepSpeed keeps the gradients twice, as sums and in fp32 for
    AdamW, and with stage 2 in bf16 a further copy of them.
    """
    share = parameters / ranks
    sums = GRADIENT_SUMS[grad_accum_dtype]
    if offload and stage == 2:
        on_cpu = MASTERS_AND_MOMENTS + FP32_GRADIENTS + WEIGHTS
        if grad_accum_dtype == "fp32":
            return StateMemory(gpu=WEIGHTS * parameters + sums * share, host=on_cpu * share)
        return StateMemory(gpu=WEIGHTS * parameters, host=(on_cpu + sums) * share)
    if offload and stage == 3:
        return StateMemory(gpu=0.0, host=(WEIGHTS + MASTERS_AND_MOMENTS + FP32_GRADIENTS + sums) * share)
    weights = WEIGHTS * (share if stage == 3 else parameters)
    gradients = sums * (share if stage >= 2 else parameters)
    return StateMemory(gpu=weights + gradients + MASTERS_AND_MOMENTS * (share if stage else parameters), host=0.0)


def memory_table() -> str:
    """The README's table: GB a GPU, and where states are offloaded, GB of main memory a rank after a plus sign."""
    columns = [(size, ranks) for size in TABLE_SIZES for ranks in RANKS]
    lines = [
        "| | " + " | ".join(f"{size} on {ranks}" for size, ranks in columns) + " |",
        "| --- |" + " ---: |" * len(columns),
    ]
    for name, stage, accumulation, offload in (
        ("`zero1`", 1, "bf16", False),
        ("`zero1`, sums in fp32", 1, "fp32", False),
        ("`zero2`", 2, "bf16", False),
        ("`zero2`, sums in fp32", 2, "fp32", False),
        ("`zero3`", 3, "bf16", False),
        ("`zero3`, sums in fp32", 3, "fp32", False),
        ("`zero2-offload`", 2, "bf16", True),
        ("`zero3-offload`", 3, "bf16", True),
    ):
        cells = []
        for size, ranks in columns:
            found = state_memory(
                architecture_parameters(PYTHIA[size]).total, stage, ranks, accumulation, offload=offload
            )
            cells.append(f"{found.gpu / 1e9:.1f}" + (f" + {found.host / 1e9:.1f}" if offload else ""))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(memory_table())
