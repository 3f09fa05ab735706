"""What a run of the passes is given and what it gives, whichever path computes it."""

from __future__ import annotations

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
    every_gate: bool = True
    """Whether gates of tokens that had halted before are wanted too (the ponder loss counts them)."""


@dataclass
class Pondered:
    """What the passes leave behind."""

    hidden: torch.Tensor
    """h^{K-1} [B, n, h]: of each token its last active pass's state, after the final LayerNorm."""
    gate_logits: torch.Tensor
    """g, float32 [B, n, gates]; -inf where a gate was not needed."""
    depths: torch.Tensor
    """int64 [B, n], 1..K; on padding 0 where padding is skipped, of no meaning elsewhere."""
