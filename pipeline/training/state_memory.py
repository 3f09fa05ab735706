"""What a training's states take in memory on each rank: weights, gradients, fp32 master weights and AdamW's moments.

`python -m pipeline.training.state_memory` prints the tables of ds_configs/README.md. Activations and DeepSpeed's
buckets for communication come on top.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.recipe import Architecture

WEIGHTS, MASTERS_AND_MOMENTS, FP32_GRADIENTS = 2, 12, 4
"""Bytes a parameter in bf16 training: bf16 weights; fp32 master weights and two moments; gradients for AdamW."""
GRADIENT_SUMS = {"bf16": 2, "fp32": 4}
"""Bytes a parameter of gradients, by `train.grad_accum_dtype`."""

PYTHIA = {
    "410M": Architecture(
        vocab_size=50304, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    ),
    "1.4B": Architecture(
        vocab_size=50304, hidden_size=2048, num_hidden_layers=24, num_attention_heads=16, intermediate_size=8192
    ),
    "2.8B": Architecture(
        vocab_size=50304, hidden_size=2560, num_hidden_layers=32, num_attention_heads=32, intermediate_size=10240
    ),
}
RANKS = (2, 8, 64)


@dataclass(frozen=True)
class StateMemory:
    """Bytes of states that one rank keeps while it trains in bf16."""

    gpu: float
    host: float
    """In the machine's main memory."""


def state_memory(
    parameters: int, stage: int, ranks: int, grad_accum_dtype: str = "bf16", *, offload: bool = False
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


def parameter_count(network: Architecture, max_passes: int = 4) -> int:
    """Parameters of an AdaPonder network on that backbone, its gates (one a pass but the last) included."""
    h, inner = network.hidden_size, network.intermediate_size
    norm = 2 * h
    layer = 2 * norm + (3 * h * h + 3 * h) + (h * h + h) + (h * inner + inner) + (inner * h + h)
    gate = (4 * h * h + 4 * h) + (4 * h + 1)
    return 2 * network.vocab_size * h + network.num_hidden_layers * layer + norm + (max_passes - 1) * gate


def memory_table() -> str:
    """The README's table: GB a GPU, and where states are offloaded, GB of main memory a rank after a plus sign."""
    columns = [(size, ranks) for size in PYTHIA for ranks in RANKS]
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
            found = state_memory(parameter_count(PYTHIA[size]), stage, ranks, accumulation, offload=offload)
            cells.append(f"{found.gpu / 1e9:.1f}" + (f" + {found.host / 1e9:.1f}" if offload else ""))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(memory_table())
