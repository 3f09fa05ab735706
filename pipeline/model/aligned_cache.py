"""K/V reuse: a halted token's keys and values are those of its last active pass (A section 3; method section 2).

transformers' GPT-NeoX attention hands its keys and values, after RoPE and before attention, to the cache it was given
and attends to what comes back. `AlignedKeyValues` stands in that place, so the attention modules stay unmodified and
every attention implementation serves.
"""

from __future__ import annotations

import torch


class AlignedKeyValues:
    """The keys and values of the newest pass of one forward, aligned layer by layer.

        K^{i,l} <- where(m^i, K^{i,l}, K^{i-1,l});   V likewise

    The recursion keeps a halted token at its last active pass. Nothing is detached: what a later pass reads of a halted
    token sends its gradient back to the pass that computed it.
    """

    def __init__(self, num_layers: int) -> None:
        self.keys: list[torch.Tensor | None] = [None] * num_layers
        self.values: list[torch.Tensor | None] = [None] * num_layers
        self.active: torch.Tensor | None = None

    def start_pass(self, active: torch.Tensor) -> None:
        """Says which tokens take part in the pass that follows: `active` (m^i), bool [B, n]."""
        self.active = active[:, None, :, None]

    def update(self, key: torch.Tensor, value: torch.Tensor, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values to attend to, from those just computed; called by the attention module.

        All of shape [B, heads, n, head size]. The first pass has nothing to align with and comes back as it is.
        """
        previous_key, previous_value = self.keys[layer_idx], self.values[layer_idx]
        if previous_key is not None and previous_value is not None:
            if self.active is None:
                raise RuntimeError("start_pass was not called before a pass that has keys and values to align")
            key = torch.where(self.active, key, previous_key)
            value = torch.where(self.active, value, previous_value)
        self.keys[layer_idx], self.values[layer_idx] = key, value
        return key, value
