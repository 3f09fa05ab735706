"""A token embedding and an LM head of random weights, and a count of the largest tensor that an operation makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.model.vocabulary import PonderEmbedding, VocabularyHead


def random_modules(
    vocabulary: int, hidden_size: int, seed: int, dtype: torch.dtype = torch.float64
) -> tuple[PonderEmbedding, VocabularyHead]:
    """Both with weights of standard deviation 1, so that a token's distribution is far from flat."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    table, head = PonderEmbedding(vocabulary, hidden_size), VocabularyHead(hidden_size, vocabulary)
    with torch.no_grad():
        head.weight.normal_()
    return table.to(dtype), head.to(dtype)


def values_and_gradients(
    compute: Callable[[torch.Tensor], torch.Tensor], hidden: torch.Tensor, *weights: torch.Tensor
) -> list[torch.Tensor]:
    """What `compute(hidden)` gives, and the gradients of hidden states and weights from random ones of its entries."""
    hidden = hidden.clone().requires_grad_()
    values = compute(hidden)
    upstream = torch.randn(values.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [values, *torch.autograd.grad(values, [hidden, *weights], upstream.to(values.dtype))]


class LargestTensor(TorchDispatchMode):
    """Records the entries of the largest tensor that any operation returns, in forward and backward alike."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.entries = max(self.entries, *sizes, 0)
        return result
