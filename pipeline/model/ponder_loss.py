"""The ponder loss: it pushes down the gates that are lowest already, so that the tokens that need least depth halt.

A section 3; method section 3.
"""

from __future__ import annotations

import torch


def ponder_loss(gate_values: torch.Tensor, fraction: float, counted: torch.Tensor | None = None) -> torch.Tensor:
    """The mean of the smallest `fraction` (k_s) of the gate values of a micro-batch.

    gate_values: float [B, n, gated passes], probabilities or logits. counted: [B, n], 0 at the positions whose gates
    do not count, as those of padding; None: all count. Of N gate values that count floor(fraction * N) are taken; where
    that is none, or there are no gates, the result is 0 - and still part of the graph, so that every gate takes part in
    every step.
    Raises ValueError if `fraction` is not between 0 and 1.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"ponder_fraction is {fraction!r}: it must be between 0 and 1")
    values = gate_values.flatten()
    if counted is None:
        takes_part = torch.ones_like(values, dtype=torch.bool)
    else:
        takes_part = counted.bool().unsqueeze(-1).expand_as(gate_values).flatten()
    # How many are taken stays a tensor: reading it back would stop the accelerator, and branching on it is forbidden.
    taken = (takes_part.sum().double() * fraction).floor()
    ascending = values.masked_fill(~takes_part, torch.inf).sort().values
    rank = torch.arange(len(ascending), device=ascending.device)
    smallest = torch.where(rank < taken, ascending, torch.zeros_like(ascending))
    return smallest.sum() / taken.clamp(min=1).to(smallest.dtype)
