"""Attention of the active tokens' queries to all keys, for tokens that lie packed as rows of one matrix."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from .adaponder_cache import Span

QUERY_BLOCK = 256
"""Queries that are attended together. They see no key after the last of them, so a block leaves out the later keys: the
half of the work that a causal kernel would leave out, but for the half block on the diagonal."""
FEW_QUERIES = 8
"""Of so few queries a row attending costs less than copying a row's cached keys."""


class PackedAttention:
    """How the tokens of one pass attend; made once a pass, used by every layer.

    B rows of n new tokens, of which A are active in this pass; earlier tokens lie in the `past` spans of a cache.
    """

    def __init__(self, active: torch.Tensor, whole: bool, real: torch.Tensor | None, past: list[Span]) -> None:
        """active: m^i, bool [B, n]; whole: all of it is True; real: bool [B, n], False on padding, None: none is."""
        self._num_rows, self._n = active.shape
        self._past = past
        self._rows: torch.Tensor | slice | None = None
        self._chosen = self._num_rows
        self._slots: torch.Tensor | None = None
        self._queries = self._n
        self._ends: list[int] = []
        places = None
        if not whole and bool(active.any()):
            places = self._lay_out(active)
        self._mask = self._visible(places, real, active.device)
        self._bias: torch.Tensor | None = None

    def _lay_out(self, active: torch.Tensor) -> torch.Tensor:
        """Give every active token a slot in a rectangle of queries [R, Q]; returns the slots' places in 0..n-1."""
        counts = active.sum(1)
        per_row = counts.tolist()
        taken = [row for row, count in enumerate(per_row) if count]
        self._queries = max(per_row)
        if self._past and self._queries <= FEW_QUERIES:
            self._rows, self._chosen = slice(taken[0], taken[-1] + 1), taken[-1] + 1 - taken[0]
        elif 2 * len(taken) <= self._num_rows:
            # Leaving rows out copies the keys of the others: not worth it for a few.
            self._rows, self._chosen = torch.tensor(taken, dtype=torch.int64, device=active.device), len(taken)
        active, counts = self._selected(active), self._selected(counts)
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
        elif self._n == 1 and not any(span.ragged for span in self._past):
            return None
        order = torch.arange(self._n, device=device)
        new = order <= (order[None, :, None] if places is None else places[:, :, None])
        if real is not None and self._n > 1:
            new = new & self._selected(real)[:, None, :]
        parts = [new.unsqueeze(1)]
        for span in reversed(self._past):
            parts.insert(0, self._selected(span.in_use())[:, None, None, :])
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
            query = query.new_zeros(self._chosen * self._queries, heads, size).index_copy(0, self._slots, query)
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
        """Scores span by span, one softmax over all, values span by span: no keys are copied together."""
        parts = [span.key_value(layer_index) for span in self._past]
        parts = [(self._selected(keys), self._selected(values)) for keys, values in parts] + [(key, value)]
        (num_rows, heads, _, size), dtype = query.shape, query.dtype
        lengths = [keys.shape[2] for keys, _ in parts]
        # Scores and sums are in float32 for 16 bits too, as in the fused kernels.
        precision = torch.promote_types(query.dtype, torch.float32)
        # Rows and heads in one dimension, as bmm takes them: matmul would look for that in every product.
        keys = [keys.flatten(0, 1).to(precision).transpose(1, 2) for keys, _ in parts]
        values = [values.flatten(0, 1).to(precision) for _, values in parts]
        query = query.to(precision).mul(scale).flatten(0, 1)
        blocks = []
        for start in range(0, self._queries, QUERY_BLOCK):
            block = query[:, start : start + QUERY_BLOCK]
            scores = torch.cat([torch.bmm(block, some) for some in keys], dim=-1)
            if self._mask is not None:
                hidden = self._hidden(scores.dtype)
                hidden = hidden if hidden.shape[2] == 1 else hidden[:, :, start : start + QUERY_BLOCK]
                scores.view(num_rows, heads, *scores.shape[1:]).add_(hidden)
            shares = scores.softmax(-1).split(lengths, dim=-1)
            mixed = torch.bmm(shares[0], values[0])
            for share, some in zip(shares[1:], values[1:], strict=True):
                mixed = torch.baddbmm(mixed, share, some)
            blocks.append(mixed.to(dtype))
        attended = blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)
        return attended.view(num_rows, heads, -1, size)

    def _hidden(self, dtype: torch.dtype) -> torch.Tensor:
        """What is added to the scores, as `_mask`: 0 for a key that is seen, minus infinity for another."""
        if self._bias is None or self._bias.dtype != dtype:
            assert self._mask is not None
            self._bias = torch.zeros(self._mask.shape, dtype=dtype, device=self._mask.device)
            self._bias.masked_fill_(~self._mask, -torch.inf)
        return self._bias
