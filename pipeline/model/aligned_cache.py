"""K/V reuse: a halted token's keys and values are those of its last active pass (A section 3; method section 2).

    K^{i,l} <- where(m^i, K^{i,l}, K^{i-1,l});   V likewise

transformers' GPT-NeoX attention hands its keys and values, after RoPE and before attention, to the cache it was given
and attends to what comes back. `AlignedLayer` stands in that place for one layer in one pass, so the attention modules
stay unmodified and every attention implementation serves. What is aligned is handed in and out as plain tensors, so
that a layer can be computed again in the backward pass.
"""

from __future__ import annotations

import torch
from transformers import DynamicCache

KeyValue = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of the tokens of one forward in one layer, each [B, heads, n, head size]."""


class FullPassCache(DynamicCache):
    """The plain cache of decoding: for every pass and layer the keys and values of all tokens, halted or not.

    It costs K times the memory of a stock cache; `AdaPonderCache` keeps each entry once. Pass i of layer l is layer
    i * num_layers + l of transformers' own cache, whose operations (crop, reorder for beams, ...) hold as they are.
    """

    def __init__(self, num_layers: int, positions_per_token: int = 1) -> None:
        """positions_per_token: entries of a token in each pass and layer; more than one with pause tokens."""
        super().__init__()
        self._num_layers = num_layers
        self._positions_per_token = positions_per_token

    def append(self, pass_index: int, layer_index: int, key: torch.Tensor, value: torch.Tensor) -> KeyValue:
        """Keep new tokens' keys and values; returns those of all tokens, each [B, heads, all tokens, head size]."""
        return super().update(key, value, pass_index * self._num_layers + layer_index)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens a row read so far, padding included."""
        return super().get_seq_length(layer_idx) // self._positions_per_token

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Entries before those of the next token."""
        return super().get_seq_length(layer_idx)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the newest tokens: -2 removes two."""
        super().crop(tokens_to_remove * self._positions_per_token)


class AlignedLayer:
    """Stands where the attention of one layer expects its cache, during one pass."""

    def __init__(
        self, active: torch.Tensor | None, previous: KeyValue | None, cache: FullPassCache | None, pass_index: int
    ) -> None:
        """active: m^i, bool [B, n], None where every token is; previous: what the pass before kept of this layer."""
        self._active = None if active is None else active[:, None, :, None]
        self._previous = previous
        self._cache = cache
        self._pass_index = pass_index
        self.kept: KeyValue | None = None

    def update(self, key: torch.Tensor, value: torch.Tensor, layer_idx: int) -> KeyValue:
        """Keys and values to attend to, from those just computed; called by the attention module.

        Nothing is detached: what a later pass reads of a halted token sends its gradient back to the pass that
        computed it.
        """
        if self._active is not None and self._previous is not None:
            key = torch.where(self._active, key, self._previous[0])
            value = torch.where(self._active, value, self._previous[1])
        self.kept = (key, value)
        if self._cache is not None:
            return self._cache.append(self._pass_index, layer_idx, key, value)
        return key, value
