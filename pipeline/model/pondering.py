"""What a run of the passes is given and what it gives, whichever path computes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class PonderInputs:
    """The tokens of one forward. B batch, n tokens of this forward, p tokens that a cache holds already."""

    input_ids: torch.Tensor
    """int64 [B, n]."""
    attention_mask: torch.Tensor | None = None
    """[B, p + n], 1 on tokens and 0 on padding; None: no padding."""
    position_ids: torch.Tensor | None = None
    """int64 [B, n] or [1, n]; None: counted on from what the cache holds."""
    cache: Any = None
    """Keys and values of earlier tokens, to which those of this forward are added; None: neither."""
    imposed_depths: torch.Tensor | None = None
    """int64 [B, n]: the depth of each token in place of the gates' decision; the gates still weigh."""
    decide: Callable[[int, torch.Tensor], torch.Tensor] | None = None
    """The same while the passes run: from pass i and its gates' logits, float [B, n], which tokens go on, bool [B, n].
    Of tokens that had halted before the logits are of no meaning, and what is said of them is not heard."""
    every_gate: bool = True
    """Whether gates of tokens that had halted before are wanted too (the ponder loss counts them)."""

    def goes_on(self, i: int, gate_logits: torch.Tensor, threshold: float) -> torch.Tensor:
        """Which tokens would go on after pass i if they were active, bool; gate_logits: float [B, n] or [B * n]."""
        if self.decide is not None:
            return self.decide(i, gate_logits.view(self.input_ids.shape)).view(gate_logits.shape)
        if self.imposed_depths is not None:
            return (self.imposed_depths > i + 1).view(gate_logits.shape)
        return gate_logits.sigmoid() >= threshold


@dataclass
class Pondered:
    """What the passes leave behind."""

    hidden: torch.Tensor
    """h^{K-1} [B, n, h]: of each token its last active pass's state, after the final LayerNorm."""
    gate_logits: torch.Tensor
    """g, float32 [B, n, gates]; -inf where a gate was not needed."""
    depths: torch.Tensor
    """int64 [B, n], 1..K; on padding 0 where padding is skipped, of no meaning elsewhere."""
