"""Loss and tokens by depth: everything the evaluation tells is a sum over these.

A token's depth is the number of passes it took part in (method section 1): 1 if it halted after the first pass, K if
it never halted. The token is the one that is read; the loss is that of the next one, which its state predicts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from pipeline.data.rows import IGNORED_LABEL


@dataclass
class DepthSums:
    """Sums over evaluated tokens, by depth 1..K."""

    max_passes: int
    nll: torch.Tensor = field(init=False)
    """float64 [K], nats."""
    tokens: torch.Tensor = field(init=False)
    """int64 [K]."""

    def __post_init__(self) -> None:
        self.nll = torch.zeros(self.max_passes, dtype=torch.float64)
        self.tokens = torch.zeros(self.max_passes, dtype=torch.int64)

    def add(self, nll: torch.Tensor, depths: torch.Tensor, shift_labels: torch.Tensor) -> None:
        """Add a batch. nll: float [B, n], nats; depths: int64 [B, n] in 1..K; shift_labels: int64 [B, n].

        Positions whose label is -100 are padding and count nowhere, neither in the loss nor in the depth.
        """
        counted = shift_labels != IGNORED_LABEL
        place = (depths[counted] - 1).cpu()
        self.nll.index_add_(0, place, nll[counted].double().cpu())
        self.tokens += torch.bincount(place, minlength=self.max_passes)

    def __add__(self, other: DepthSums) -> DepthSums:
        both = DepthSums(self.max_passes)
        both.nll = self.nll + other.nll
        both.tokens = self.tokens + other.tokens
        return both

    @property
    def total_tokens(self) -> int:
        return int(self.tokens.sum())

    @property
    def loss(self) -> float:
        """Nats a token."""
        return float(self.nll.sum()) / self.total_tokens

    @property
    def mean_depth(self) -> float:
        passes = torch.arange(1, self.max_passes + 1)
        return float((passes * self.tokens).sum()) / self.total_tokens

    @property
    def halted_share(self) -> list[float]:
        """Share of the tokens that have halted when pass 1, 2, ..., K-1 is over; it never falls."""
        return (self.tokens.cumsum(0)[:-1].double() / self.total_tokens).tolist()

    @property
    def loss_by_depth(self) -> list[float | None]:
        """Nats a token at depth 1..K; None where no token has that depth."""
        pairs = zip(self.nll.tolist(), self.tokens.tolist(), strict=True)
        return [nll / count if count else None for nll, count in pairs]
