"""Attention of the active tokens' queries to all keys, for tokens that lie packed as rows of one matrix."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from .adaponder_cache import Segment

QUERY_BLOCK = 256
"""Queries that are attended together. They see no key after the last of them, so a block leaves out the later keys: the
half of the work that a causal kernel would leave out, but for the half block on the diagonal."""


class PackedAttention:
    """How the tokens of one pass attend; made once a pass, used by every layer.

    B rows of n new tokens, of which A are active in this pass; earlier tokens lie in the `past` segments of a cache.
    """

    def __init__(self, active: torch.Tensor, whole: bool, real: torch.Tensor | None, past: list[Segment]) -> None:
        """active: m^i, bool [B, n]; whole: all of it is True; real: bool [B, n], False on padding, None: none is."""
        self._num_rows, self._n = active.shape
        self._past = past
        self._rows: torch.Tensor | None = None
        self._slots: torch.Tensor | None = None
        self._queries = self._n
        self._ends: list[int] = []
        places = None
        if not whole and bool(active.any()):
            places = self._lay_out(active)
        self._mask = self._visible(places, real, active.device)

    def _lay_out(self, active: torch.Tensor) -> torch.Tensor:
        """Give every active token a slot in a rectangle of queries [R, Q]; returns the slots' places in 0..n-1."""
        counts = active.sum(1)
        per_row = counts.tolist()
        taken = [row for row, count in enumerate(per_row) if count]
        # Leaving rows out copies the keys of the others: not worth it for a few.
        if 2 * len(taken) <= self._num_rows:
            self._rows = torch.tensor(taken, dtype=torch.int64, device=active.device)
            active, counts = active[self._rows], counts[self._rows]
        self._queries = max(per_row)
        order = torch.arange(self._queries, device=active.device)
        filled = order < counts[:, None]
        self._slots = filled.flatten().nonzero().squeeze(1)
        place = active.nonzero(as_tuple=True)[1]
        # An empty slot looks from the last place. If it sees no key at all, the kernel gives zeros; its row is dropped.
        places = torch.full(filled.shape, self._n - 1, device=active.device)
        places[filled] = place
        if not self._past:
            last = torch.where(filled, places, 0).amax(0) + 1
            self._ends = [int(block.max()) for block in last.split(QUERY_BLOCK)]
        return places

    def _visible(self, places: torch.Tensor | None, real: torch.Tensor | None, device: torch.device):
        """bool [R or 1, 1, Q or 1, keys], the past's keys first; None: a causal kernel knows, or every key is seen."""
        if not self._past:
            if places is None:
                return None
        elif self._n == 1 and not any(segment.ragged for segment in self._past):
            return None
        order = torch.arange(self._n, device=device)
        new = order <= (order[None, :, None] if places is None else places[:, :, None])
        if real is not None and self._n > 1:
            new = new & self._selected(real)[:, None, :]
        parts = [new.unsqueeze(1)]
        for segment in reversed(self._past):
            parts.insert(0, self._selected(segment.in_use())[:, None, None, :])
        if len(parts) == 1:
            return parts[0]
        num_rows, queries = max(p.shape[0] for p in parts), max(p.shape[2] for p in parts)
        return torch.cat([part.expand(num_rows, 1, queries, part.shape[3]) for part in parts], dim=-1)

    def _selected(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows [B, ...] that attend."""
        return rows if self._rows is None else rows[self._rows]

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        layer_index: int,
        scale: float,
        dropout: float,
    ) -> torch.Tensor:
        """[A, heads * D] from queries [A, heads, D] and the new tokens' aligned keys and values [B, n, heads, D]."""
        if not len(query):
            return query.flatten(1)
        _, heads, size = query.shape
        if self._slots is not None:
            num_rows = self._num_rows if self._rows is None else len(self._rows)
            query = query.new_zeros(num_rows * self._queries, heads, size).index_copy(0, self._slots, query)
        query = query.view(-1, self._queries, heads, size).transpose(1, 2)
        key, value = self._selected(key).transpose(1, 2), self._selected(value).transpose(1, 2)
        if self._past:
            attended = self._with_past(query, key, value, layer_index, scale)
        elif self._slots is None:
            causal = self._n > 1 and self._mask is None
            attended = F.scaled_dot_product_attention(
                query, key, value, attn_mask=self._mask, dropout_p=dropout, is_causal=causal, scale=scale
            )
        else:
            attended = self._in_blocks(query, key, value, scale, dropout)
        attended = attended.transpose(1, 2).reshape(-1, heads * size)
        return attended if self._slots is None else attended.index_select(0, self._slots)

    def _in_blocks(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, dropout: float):
        assert self._mask is not None
        blocks = []
        for block, visible, end in zip(
            query.split(QUERY_BLOCK, dim=2), self._mask.split(QUERY_BLOCK, dim=2), self._ends, strict=True
        ):
            blocks.append(
                F.scaled_dot_product_attention(
                    block,
                    key[:, :, :end],
                    value[:, :, :end],
                    attn_mask=visible[..., :end],
                    dropout_p=dropout,
                    scale=scale,
                )
            )
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=2)

    def _with_past(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer_index: int, scale: float
    ) -> torch.Tensor:
        """Scores segment by segment, one softmax over all, values segment by segment: no keys are copied together."""
        cached = [segment.key_value(layer_index) for segment in self._past]
        parts = [(self._selected(keys), self._selected(values)) for keys, values in cached]
        parts.append((key, value))
        lengths = [keys.shape[2] for keys, _ in parts]
        precision = torch.promote_types(query.dtype, torch.float32)
        blocks = []
        for start in range(0, self._queries, QUERY_BLOCK):
            # Scores and sums are in float32 for 16 bits too, as in the fused kernels.
            block = query[:, :, start : start + QUERY_BLOCK].to(precision) * scale
            scores = torch.cat([block @ keys.to(precision).transpose(2, 3) for keys, _ in parts], dim=-1)
            if self._mask is not None:
                visible = self._mask if self._mask.shape[2] == 1 else self._mask[:, :, start : start + QUERY_BLOCK]
                scores.masked_fill_(~visible, -torch.inf)
            shares = scores.softmax(-1).split(lengths, dim=-1)
            mixed = shares[0] @ parts[0][1].to(precision)
            for share, (_, values) in zip(shares[1:], parts[1:], strict=True):
                mixed = mixed + share @ values.to(precision)
            blocks.append(mixed.to(query.dtype))
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=2)
