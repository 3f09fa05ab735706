"""The two ends of the vocabulary: the token embedding, which also mixes (P1; method section 1), and the LM head.

Their work can go over chunks of tokens (`vocabulary_chunks.py`), so that the logits of all tokens never exist at once.
Each weight is read inside its own module's forward, and inside both where both are needed: that is where ZeRO-3
gathers them, in backward as well.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from .few_rows import few_rows_by_transposed, few_rows_product, serves_few_rows
from .vocabulary_chunks import chunked_mixture, chunked_top_k_mixture
from .vocabulary_loss import (
    IGNORED,
    chunked_negative_log_likelihood,
    chunked_summed_likelihood,
    liger_cross_entropy,
    liger_serves,
)


class PonderEmbedding(nn.Embedding):
    """The token embedding, which also gives the mean embedding under the LM head's distribution."""

    def forward(
        self,
        input: torch.Tensor,
        head: VocabularyHead | None = None,
        chunk_tokens: int = 0,
        top_k: int = 0,
        decoding: bool = False,
    ) -> torch.Tensor:
        """int64 ids [...] to embeddings [..., h]; with `head`: hidden states [..., h] to the mixture [..., h].

        The mixture is softmax(head(hidden)) @ weight. chunk_tokens: how many tokens' logits exist at once, 0 for all.
        top_k: only the k largest logits of a token enter, renormalised; 0 for all. decoding: few tokens may take the
        products of `few_rows.py`.
        Raises ValueError for floating input without `head`, or a negative `chunk_tokens` or `top_k`.
        """
        if head is not None:
            return head(input, table=self, chunk_tokens=chunk_tokens, top_k=top_k, decoding=decoding)
        if input.is_floating_point():
            raise ValueError("hidden states were given without the head that makes a distribution of them")
        return super().forward(input)


class VocabularyHead(nn.Linear):
    """The LM head, without bias, and what is computed from its logits."""

    def __init__(self, hidden_size: int, vocabulary: int) -> None:
        super().__init__(hidden_size, vocabulary, bias=False)

    def forward(
        self,
        hidden: torch.Tensor,
        *,
        table: PonderEmbedding | None = None,
        labels: torch.Tensor | None = None,
        reduction: str = "none",
        chunk_tokens: int = 0,
        top_k: int = 0,
        decoding: bool = False,
    ) -> torch.Tensor:
        """Logits [..., vocabulary] of the hidden states [..., h], or what `table` or `labels` ask for.

        table: the mixture [..., h], see `PonderEmbedding.forward`, which is where to call this from.
        labels: int64 [...], -100 ignored: the negative log likelihood of each label, in nats, float32 (float64 in a
        float64 model) [...], 0 where the label is -100; with `reduction` "mean" its mean over the other labels, 0
        where there is none.
        chunk_tokens: how many tokens' logits exist at once, 0 for all. decoding: see `PonderEmbedding.forward`.
        Raises ValueError if both `table` and `labels` are given, for another `reduction` than "none" and "mean", or a
        negative `chunk_tokens` or `top_k`.
        """
        if chunk_tokens < 0 or top_k < 0:
            raise ValueError(f"chunk_tokens is {chunk_tokens} and top_k is {top_k}: neither may be negative")
        if reduction not in ("none", "mean"):
            raise ValueError(f"reduction is {reduction!r}: it must be none or mean")
        if table is not None and labels is not None:
            raise ValueError("table and labels are given: give one of them")
        rows = hidden.flatten(0, -2)
        if decoding and labels is None and serves_few_rows(rows, self.weight):
            logits = few_rows_by_transposed(rows, self.weight)
            if table is None:
                return logits.view(*hidden.shape[:-1], -1)
            return self._mix(logits, table.weight, min(top_k, self.out_features), few_rows_product).view(hidden.shape)
        if table is not None:
            return self._mixture(hidden, table.weight, chunk_tokens, min(top_k, self.out_features))
        if labels is None:
            return super().forward(hidden)
        labels = labels.to(hidden.device)
        if reduction == "none":
            return self._negative_log_likelihood(hidden, labels, chunk_tokens)
        if chunk_tokens and liger_serves(hidden, self.weight):
            total = liger_cross_entropy(hidden.flatten(0, -2), self.weight, labels.flatten())
        elif chunk_tokens:
            total = chunked_summed_likelihood(hidden.flatten(0, -2), self.weight, labels.flatten(), chunk_tokens)
        else:
            total = self._negative_log_likelihood(hidden, labels, chunk_tokens).sum()
        return total / (labels != IGNORED).sum().clamp(min=1)

    def _mixture(self, hidden: torch.Tensor, table: torch.Tensor, chunk_tokens: int, top_k: int) -> torch.Tensor:
        if chunk_tokens:
            rows = hidden.flatten(0, -2)
            if top_k:
                mixture = chunked_top_k_mixture(rows, self.weight, table, chunk_tokens, top_k)
            else:
                mixture = chunked_mixture(rows, self.weight, table, chunk_tokens)
            return mixture.view(hidden.shape)
        return self._mix(super().forward(hidden), table, top_k, torch.matmul)

    @staticmethod
    def _mix(
        logits: torch.Tensor,
        table: torch.Tensor,
        top_k: int,
        product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        if not top_k:
            return product(logits.softmax(-1), table)
        largest, chosen = logits.topk(top_k, dim=-1)
        return (largest.softmax(-1).unsqueeze(-2) @ F.embedding(chosen, table)).squeeze(-2)

    def _negative_log_likelihood(self, hidden: torch.Tensor, labels: torch.Tensor, chunk_tokens: int) -> torch.Tensor:
        if chunk_tokens:
            rows = hidden.flatten(0, -2)
            return chunked_negative_log_likelihood(rows, self.weight, labels.flatten(), chunk_tokens).view(labels.shape)
        logits = super().forward(hidden).flatten(0, -2)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        nll = F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED, reduction="none")
        return nll.view(labels.shape)
