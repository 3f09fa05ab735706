"""transformers' GPT-NeoX layer, with an MLP that can be computed again in the backward pass."""

from __future__ import annotations

import torch
from torch.utils.checkpoint import checkpoint
from transformers import GPTNeoXConfig
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXLayer, GPTNeoXMLP

CHECKPOINTING = ("none", "activation", "mlp", "layer", "pass")


class PonderMLP(GPTNeoXMLP):
    """GPT-NeoX's MLP. Its inside, 4h before and 4h after the activation, is most of what a layer keeps for backward."""

    recompute = "none"
    """activation: the 4h after it are computed again; mlp: the 4h before it too."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[..., h] to [..., h]."""
        if self.recompute == "mlp" and torch.is_grad_enabled():
            return checkpoint(super().forward, hidden_states, use_reentrant=False)  # pyright: ignore
        if self.recompute == "activation" and torch.is_grad_enabled():
            # The second product is not computed again: torch stops where its input is there.
            return checkpoint(self._second_half, self.dense_h_to_4h(hidden_states), use_reentrant=False)  # pyright: ignore
        return super().forward(hidden_states)

    def _second_half(self, inner: torch.Tensor) -> torch.Tensor:
        return self.dense_4h_to_h(self.act(inner))


class PonderLayer(GPTNeoXLayer):
    """One layer of the transformer, under GPT-NeoX's names."""

    def __init__(self, config: GPTNeoXConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        # A second MLP of our own in its place would draw a second set of random weights first.
        self.mlp.__class__ = PonderMLP
