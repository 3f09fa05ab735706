"""How much arithmetic a step is, and what share of the chip that is (MFU).

Counted honestly (method section 7): vocabulary head, mixture and gates are in (`pipeline/model/flops.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipeline.gpus import peak_of
from pipeline.model import AdaPonderConfig
from pipeline.model.flops import mean_keys, training_work


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
