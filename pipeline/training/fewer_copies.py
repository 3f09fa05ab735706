"""ZeRO 1 on a CPU without copies of all gradients and weights that DeepSpeed makes with a GPU in mind.

Beside a step on a GPU a copy is nothing; on a CPU, at Pythia-70M's shape, those left out here took a tenth of a step of
256 tokens. What is computed stays the same, but for the last digits of the gradient norm.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist

_BLOCK = 1 << 14
"""Elements whose squares are added up in fp32, before the sums of blocks go on in fp64."""


def cpu_communication(zero_stage: int) -> dict[str, Any]:
    """What DeepSpeed's `zero_optimization` is to say on a CPU, where the strategy says nothing of it."""
    # Gradients stay where backward leaves them, instead of moving into a bucket and out of it again. Stage 2 frees
    # them bucket by bucket, which the contiguous ones are for.
    return {"contiguous_gradients": False} if zero_stage == 1 else {}


def spare_copies(optimizer: Any) -> None:
    """Change the ZeRO 1 or 2 optimizer of an engine on the CPU; every other one is left as it is."""
    if type(optimizer).__name__ != "DeepSpeedZeroOptimizer" or optimizer.cpu_offload:
        return
    if optimizer.gradient_accumulation_dtype == torch.float32:
        optimizer.get_grad_norm_direct = lambda gradients, params: _norm(gradients)
    if dist.get_world_size() > 1:
        return
    if not optimizer.contiguous_gradients:
        # Of one rank's gradients the mean is they themselves.
        optimizer.buffered_reduce_fallback = lambda *_, **__: None
    if optimizer.dtype == torch.float32:
        _share_weights(optimizer)
        _keep_flat_gradient(optimizer)


def _share_weights(optimizer: Any) -> None:
    """Let the optimizer work on the weights themselves: on one rank in fp32 its copy of them is all of them."""
    for (weights,), masters in zip(
        optimizer.parallel_partitioned_bit16_groups, optimizer.single_partition_of_fp32_groups, strict=True
    ):
        masters.data = weights.data
    optimizer._link_all_hp_params()


def _keep_flat_gradient(optimizer: Any) -> None:
    """Flatten the gradients of one group after the other into the same memory: new pages take longer than the copy.

    It takes the room that the second copy of the weights had.
    """
    flat = torch.empty(max(weights.numel() for weights in optimizer.bit16_groups_flat))

    flatten_anew = optimizer.flatten_dense_tensors_aligned

    def flatten(tensors: list[torch.Tensor], alignment: int, *others: Any, **more: Any) -> torch.Tensor:
        if not any(tensors is gradients for gradients in optimizer.averaged_gradients.values()):
            return flatten_anew(tensors, alignment, *others, **more)  # of a checkpoint, say
        end = 0
        for gradient in tensors:
            begin, end = end, end + gradient.numel()
            flat[begin:end].copy_(gradient.reshape(-1))
        padded = -(-end // alignment) * alignment
        return flat[:padded].index_fill_(0, torch.arange(end, padded), 0.0)

    optimizer.flatten_dense_tensors_aligned = flatten


def _norm(gradients: Iterable[torch.Tensor]) -> torch.Tensor:
    """Of the gradients on all ranks together, fp32 []; -1 where it is not finite, as DeepSpeed wants it; collective."""
    total = torch.zeros((), dtype=torch.float64)
    for gradient in gradients:
        if getattr(gradient, "_zero_padding", False):
            continue
        flat = gradient.detach().reshape(-1)
        whole = flat.numel() // _BLOCK * _BLOCK
        for part in (flat[:whole].view(-1, _BLOCK), flat[whole:].view(1, -1)):
            total += torch.linalg.vector_norm(part, dim=1).double().square().sum()
    total = total.float()
    dist.all_reduce(total)
    norm = total.sqrt()
    return norm if torch.isfinite(norm) else torch.full_like(norm, -1.0)
