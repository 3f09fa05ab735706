"""How fast a training is: tokens, the arithmetic that they are, and what share of the chip that is (MFU).

Counted honestly (method section 7): vocabulary head, mixture and gates are in (`pipeline/model/flops.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

from pipeline.gpus import peak_of
from pipeline.model import AdaPonderConfig
from pipeline.model.flops import mean_keys, training_work
from pipeline.recipe import Recipe


class Throughput:
    """The speed of one segment's training."""

    def __init__(
        self, recipe: Recipe, config: AdaPonderConfig, seq_len: int, world_size: int, trained: str, device: torch.device
    ) -> None:
        """trained: the segment's set of parameters (`Phase.trained`)."""
        self._config, self._seq_len, self._world_size = config, seq_len, world_size
        self._tokens_per_step = recipe.train.global_batch * seq_len
        self._skips = recipe.train.skip_halted
        self._frozen_backbone = trained == "gates"
        # What a backward pass leaves out for a pattern of parameters is counted nowhere.
        self._counted = trained in ("all", "gates")
        # The known peaks are bf16's.
        self._peak = peak_flops(device) if recipe.train.precision == "bf16" else None

    def metrics(self, step_seconds: float, logged: dict[str, float]) -> dict[str, float]:
        """Speed at `step_seconds` a step; the arithmetic is by the depths in a logged step's metrics."""
        tokens_per_second = self._tokens_per_step / step_seconds
        found = {"speed/tokens_per_second": tokens_per_second}
        if not self._counted:
            return found
        depths = depth_histogram(logged, self._config.max_passes) if self._skips else None
        a_token = training_flops_per_token(self._config, self._seq_len, depths, frozen_backbone=self._frozen_backbone)
        flops = tokens_per_second * a_token / self._world_size
        found["speed/tflops_per_rank"] = flops / 1e12
        if self._peak:
            found["speed/mfu"] = flops / self._peak
        return found


def depth_histogram(logged: dict[str, float], passes: int) -> list[float]:
    """Share of the tokens at depth 1, 2, ..., `passes`, from a logged step's metrics."""
    active = [logged[f"depth/keep_ratio_pass_{i + 1}"] for i in range(passes)] + [0.0]
    return [here - after for here, after in pairwise(active)]


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
