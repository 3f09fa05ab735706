"""Depths by fixed shares: after each pass the tokens with the largest gate values go on, so many of each row.

A gate sees what the passes before made of its token and of all others, so the depths are found pass by pass: each time
the network runs with what is decided, and its next gates are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from pipeline.model import AdaPonderForCausalLM


class RowCounts:
    """Whole numbers of tokens, row by row, whose sums follow the shares to within one token."""

    def __init__(self, shares: Sequence[float]) -> None:
        self._shares = [Fraction(share) for share in shares]
        self._tokens = 0
        self._given = [0] * len(self._shares)

    def next(self, tokens: int) -> list[int]:
        """How many of the next row's `tokens` tokens are active in pass 2, 3, ...; never more than in the pass
        before."""
        self._tokens += tokens
        counts, before = [], tokens
        for number, share in enumerate(self._shares):
            count = min(before, max(0, round(share * self._tokens) - self._given[number]))
            self._given[number] += count
            counts.append(count)
            before = count
        return counts


@torch.inference_mode()
def depths_by_shares(
    model: AdaPonderForCausalLM, inputs: torch.Tensor, counted: torch.Tensor, counts: Sequence[Sequence[int]]
) -> torch.Tensor:
    """Depths int64 [B, n] for inputs int64 [B, n], on a network whose tokens can halt.

    counted: bool [B, n], tokens that a policy counts; others, padding, take one pass. counts: of each row, how many of
    its tokens are active in pass 2, ..., K.
    """
    depths = torch.ones_like(inputs)
    active = counted
    for i in range(model.config.max_passes - 1):
        gates = model(inputs, imposed_depths=depths, logits_to_keep=1).gate_logits[..., i]
        ranked = gates.masked_fill(~active, -torch.inf)
        going = torch.zeros_like(active)
        for row, of_row in enumerate(counts):
            going[row, ranked[row].topk(of_row[i]).indices] = True
        active = going & active
        depths = depths + active
    return depths
