"""The gates: one small MLP a pass that says how much of the next update a token takes, and whether it goes on.

Every pass has a gate of its own, unless `shared_gate` asks for one for all, which collapses (A 4.4.3).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class GateLogit(nn.Linear):
    """The last layer of a gate, computed in float32 whatever the model's dtype (in float64 in a float64 model).

    The halting threshold of 1e-4 lies at a logit of -9.2, where bfloat16 has steps of 0.06: a token would halt by
    rounding.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        dtype = torch.promote_types(input.dtype, torch.float32)
        with torch.autocast(input.device.type, enabled=False):
            return F.linear(input.to(dtype), self.weight.to(dtype), self.bias.to(dtype))


class Gate(nn.Module):
    """MLP_i of the method, h -> 4h -> 1 with GELU (A section 3)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(hidden_size, 4 * hidden_size)
        self.logit = GateLogit(4 * hidden_size, 1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The logit g of each token, float32 [B, n], from its hidden state [B, n, h]; s = sigmoid(g)."""
        return self.logit(F.gelu(self.dense_h_to_4h(hidden_states))).squeeze(-1)
