"""The ponder loss: it pushes down the gates that are lowest already, so that the tokens that need least depth halt.

A section 3; method section 3. `depth_loss` is this project's own, for trainings that hold a depth.
"""

from __future__ import annotations

import math

import torch

DEPTH_MARGIN = 1.0
"""How far beyond the threshold `depth_loss` wants a gate, in logits: far enough that noise does not take it back."""


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


def depth_loss(
    gate_logits: torch.Tensor,
    depths: torch.Tensor,
    fraction: float,
    threshold: float,
    closing: bool,
    counted: torch.Tensor | None = None,
) -> torch.Tensor:
    """How far the gates nearest to the halting threshold are from its other side, in logits: what closes or opens them.

    gate_logits: float [B, n, gated passes]; depths: int64 [B, n], passes that each token took part in; counted: [B, n],
    0 at the positions whose gates do not count. threshold: tau. Of the gates that tokens come to, those on the one side
    of the threshold (closing: the open ones, otherwise the closed ones) count, nearest first, up to floor(fraction * N)
    of N gates; the result is the sum of their distances to a point `DEPTH_MARGIN` beyond the threshold over
    floor(fraction * N), so that few gates are not pushed harder than many. On logits and not on probabilities: a closed
    gate's probability has no gradient to open it by. 0, and still part of the graph, where there are none.
    Raises ValueError if `fraction` is not between 0 and 1.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"ponder_fraction is {fraction!r}: it must be between 0 and 1")
    passes = torch.arange(gate_logits.shape[-1], device=gate_logits.device)
    comes_to = depths.unsqueeze(-1) > passes
    if counted is not None:
        comes_to = comes_to & counted.bool().unsqueeze(-1)
    # tau 0 closes no gate, whatever its logit: all are infinitely far from it.
    edge = math.log(threshold / (1 - threshold)) if threshold > 0 else -math.inf
    one_side = comes_to & ((gate_logits >= edge) if closing else (gate_logits < edge))
    sign = 1.0 if closing else -1.0
    distance = (sign * (gate_logits - edge) + DEPTH_MARGIN).masked_fill(~one_side, torch.inf).flatten().sort().values
    taken = (torch.as_tensor(comes_to.numel(), device=distance.device).double() * fraction).floor()
    rank = torch.arange(len(distance), device=distance.device)
    pushed = torch.where((rank < taken) & distance.isfinite(), distance, torch.zeros_like(distance))
    return pushed.sum() / taken.clamp(min=1).to(pushed.dtype)
