"""How much arithmetic a step is, and what share of the chip that is (MFU).

Counted honestly (method section 7): vocabulary head, mixture and gates are in, and training runs every pass for every
token whatever halts, so depth does not enter here.
"""

from __future__ import annotations

import re

import torch

from pipeline.model import AdaPonderConfig

PEAK_FLOPS_BF16 = {
    # Dense bf16 peaks from the vendors' data sheets, FLOP/s for a device as torch counts them (MI250: one of its dies).
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "GH200": 989e12,
    "B200": 2250e12,
    "GB200": 2450e12,
    "L40S": 362e12,
    "A10": 125e12,
    "A10G": 70e12,
    "MI250X": 191e12,
    "MI300X": 1307e12,
}


def training_flops_per_token(config: AdaPonderConfig, seq_len: int) -> float:
    """Floating-point operations that training spends on a token: 2 for each multiply-accumulate, x 3 with backward."""
    hidden, passes = config.hidden_size, config.max_passes
    gated = passes if config.gate_on_last_pass else passes - 1
    transformer = config.num_hidden_layers * (4 * hidden**2 + 2 * hidden * config.intermediate_size)
    attention = config.num_hidden_layers * seq_len * hidden
    head = mixture = config.vocab_size * hidden
    gate = 4 * hidden**2 + 4 * hidden
    macs = passes * (transformer + attention + head) + (passes - 1) * mixture + gated * gate
    return 2.0 * 3.0 * macs


def peak_flops(device: torch.device) -> float | None:
    """The device's bf16 peak in FLOP/s, or None where it is not known (every CPU)."""
    if device.type != "cuda":
        return None
    return peak_of(torch.cuda.get_device_name(device))


def peak_of(device_name: str) -> float | None:
    """The peak of the chip that stands as a word of its own in a device's name ("NVIDIA A100-SXM4-80GB")."""
    known = [chip for chip in PEAK_FLOPS_BF16 if re.search(rf"\b{chip}\b", device_name)]
    return PEAK_FLOPS_BF16[max(known, key=len)] if known else None
