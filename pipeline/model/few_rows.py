"""Products of a few rows with a large matrix on a CPU, as decoding needs them.

The matrix library of torch's CPU builds is slow, and erratic, where one factor has 1 to 8 rows: three rows can take
three times as long as eight (docs/performance.md). The same products in another shape read the weights at the speed of
memory. Results differ from those of `F.linear` by rounding, so the plain path does without.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

FEW = 8
BLOCK = 384
"""Rows of the matrix in one of the small products that a large one is cut into."""
RUN_AS = {7: 8}
"""Seven rows take up to a quarter longer than eight (docs/performance.md); so that many are computed."""


def serves_few_rows(rows: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether the functions of this file are for `rows` [m, ...] and `weight`: few rows on a CPU, without gradients.

    A weight that ZeRO-3 keeps elsewhere has not two dimensions here; its own module gathers it.
    """
    return (
        rows.ndim == 2
        and 0 < len(rows) <= FEW
        and weight.ndim == 2
        and rows.device.type == weight.device.type == "cpu"
        and rows.dtype in (torch.float32, torch.float64)
        and not torch.is_grad_enabled()
    )


def takes_few_rows(module: nn.Linear, rows: torch.Tensor) -> bool:
    """Whether `few_rows_linear` computes `module(rows)` by itself.

    Not where something stands in the module's place, or listens to it: an adapter, a quantised layer, a hook.
    """
    hooks = module._forward_hooks or module._forward_pre_hooks
    return type(module) is nn.Linear and not hooks and serves_few_rows(rows, module.weight)


def few_rows_linear(module: nn.Linear, rows: torch.Tensor) -> torch.Tensor:
    """`module(rows)`, [m, out] from [m, in]."""
    if not takes_few_rows(module, rows):
        return module(rows)
    product = few_rows_by_transposed(rows, module.weight)
    return product if module.bias is None else product.add_(module.bias)


def few_rows_by_transposed(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """rows @ weight.T, [m, out] from [m, in] and [out, in]."""
    m = len(rows)
    # A single row would be a matrix-vector product, which runs on one core.
    columns = rows.repeat(2, 1) if m == 1 else _filled_up(rows)
    return (weight @ columns.t())[:, :m].t().contiguous()


def few_rows_product(rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """rows @ matrix, [m, h] from [m, V] and [V, h]; summed over blocks of V."""
    m, length = len(rows), rows.shape[1]
    rows = _filled_up(rows)
    blocks = length // BLOCK
    whole = blocks * BLOCK
    tail = rows[:, whole:] @ matrix[whole:]
    if not blocks:
        return tail[:m]
    left = rows[:, :whole].view(len(rows), blocks, BLOCK).transpose(0, 1)
    return (torch.bmm(left, matrix[:whole].view(blocks, BLOCK, -1)).sum(0) + tail)[:m]


def _filled_up(rows: torch.Tensor) -> torch.Tensor:
    """`rows` [m, ...] with zeros behind them, as many rows as are computed in the time of m."""
    return F.pad(rows, (0, 0, 0, RUN_AS.get(len(rows), len(rows)) - len(rows)))
