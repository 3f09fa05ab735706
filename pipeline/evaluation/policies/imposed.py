"""Depths by fixed shares: after each pass the tokens with the largest gate values go on, so many of each row."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch


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


class LargestGoOn:
    """What a network's `decide` is for one batch: of each row so many tokens go on, those with the largest gates."""

    def __init__(self, counted: torch.Tensor, counts: Sequence[Sequence[int]]) -> None:
        """counted: bool [B, n], tokens that a policy counts; others, padding, take one pass. counts: of each row, how
        many of its tokens are active in pass 2, ..., K."""
        self._active, self._counts = counted, counts

    def __call__(self, i: int, gate_logits: torch.Tensor) -> torch.Tensor:
        """bool [B, n] from float [B, n], pass after pass."""
        ranked = gate_logits.masked_fill(~self._active, -torch.inf)
        going = torch.zeros_like(self._active)
        for row, of_row in enumerate(self._counts):
            going[row, ranked[row].topk(of_row[i]).indices] = True
        self._active = going & self._active
        return self._active
