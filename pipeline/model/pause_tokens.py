"""Pause tokens: P learned embeddings after every token, the last of which predicts the next token (method section 8).

    token 0, pause 1, ..., pause P, token 1, pause 1, ..., pause P, ...

The transformer runs once over these n (1 + P) positions, causally, with RoPE counting all of them. Everything outside
speaks of tokens: ids, masks, position ids, labels, logits and the length of a cache. The passes in between, on either
path, see a longer text and know nothing of pauses.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from .pondering import Pondered, PonderInputs


class PauseEmbedding(nn.Embedding):
    """The pauses' embeddings, P rows; they start, and are scaled, like those of tokens."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Embeddings of tokens [B, n, h], with those of the pauses after each: [B, n (1 + P), h]."""
        pauses = self.weight.to(tokens.dtype).expand(*tokens.shape[:2], -1, -1)
        return torch.cat([tokens.unsqueeze(2), pauses], dim=2).flatten(1, 2)


def with_pauses(inputs: PonderInputs, pauses: int) -> PonderInputs:
    """The same by position: what holds of a token holds of its pauses, which have the places after it.

    A pause carries the id of its token, which `AdaPonderModel.embed` reads once.
    """
    stride = 1 + pauses
    places = inputs.position_ids
    if places is None:
        seen = 0 if inputs.cache is None else inputs.cache.get_seq_length()
        places = torch.arange(seen, seen + inputs.input_ids.shape[1], device=inputs.input_ids.device).unsqueeze(0)
    offsets = torch.arange(stride, device=places.device)
    mask, imposed = inputs.attention_mask, inputs.imposed_depths
    return replace(
        inputs,
        input_ids=inputs.input_ids.repeat_interleave(stride, dim=1),
        attention_mask=None if mask is None else mask.repeat_interleave(stride, dim=1),
        position_ids=(places.unsqueeze(-1) * stride + offsets).flatten(1),
        imposed_depths=None if imposed is None else imposed.repeat_interleave(stride, dim=1),
    )


def of_last_pauses(pondered: Pondered, pauses: int) -> Pondered:
    """Of n (1 + P) positions those that predict: the last pause of each of the n tokens."""
    last = slice(pauses, None, 1 + pauses)
    return Pondered(pondered.hidden[:, last], pondered.gate_logits[:, last], pondered.depths[:, last])
