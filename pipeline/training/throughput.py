"""How much arithmetic a step is, and what share of the chip that is (MFU).

Counted honestly (method section 7): vocabulary head, mixture and gates are in (`pipeline/model/flops.py`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from pipeline.model import AdaPonderConfig
from pipeline.model.flops import mean_keys, training_work

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


def training_flops_per_token(
    config: AdaPonderConfig,
    seq_len: int,
    depth_histogram: Sequence[float] | None = None,
    *,
    frozen_backbone: bool = False,
) -> float:
    """Floating-point operations that the gradients need for a token: 2 for each multiply-accumulate.

    What is recomputed to save memory is not in, as in every model FLOPs utilisation. depth_histogram: tokens at depth
    1..K, where training skips halted tokens inside a pass; None: every pass runs for every token. frozen_backbone: the
    gates alone are trained.
    """
    work = training_work(
        config, mean_keys(seq_len), depth_histogram, frozen_backbone=frozen_backbone, chunked_mixture=True
    )
    return 2.0 * work.model.total


def peak_flops(device: torch.device) -> float | None:
    """The device's bf16 peak in FLOP/s, or None where it is not known (every CPU)."""
    if device.type != "cuda":
        return None
    return peak_of(torch.cuda.get_device_name(device))


def peak_of(device_name: str) -> float | None:
    """The peak of the chip that stands as a word of its own in a device's name ("NVIDIA A100-SXM4-80GB")."""
    known = [chip for chip in PEAK_FLOPS_BF16 if re.search(rf"\b{chip}\b", device_name)]
    return PEAK_FLOPS_BF16[max(known, key=len)] if known else None
