"""The vocabulary's work without the logits of all tokens: mixture and negative log likelihood as autograd functions.

Forward goes over chunks of tokens and keeps one number a token, the logarithm of the softmax's denominator. With it,
backward needs no whole rows: it goes over blocks of the vocabulary for all tokens, of as many entries as a chunk of
forward, so that a block's weight gradients are written once and only the hidden states' gradient, which is small, is
summed over blocks. (Chunks of tokens would add up the whole weight gradients once a chunk.)

Scratch is allocated once a call and reused: fresh memory of this size costs as much as the work in it. 16-bit models
multiply in 16 bits, take the softmax in float32, and sum gradients of hidden states in float32, as torch's own
operations do.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def chunked_mixture(hidden: torch.Tensor, head: torch.Tensor, table: torch.Tensor, chunk_tokens: int) -> torch.Tensor:
    """softmax(hidden @ head^T) @ table, [tokens, h], from hidden [tokens, h] and two weights [vocabulary, h]."""
    with torch.autocast(hidden.device.type, enabled=False):
        hidden = hidden.to(head.dtype)
        if records_gradients(hidden, head, table):
            return _Mixture.apply(hidden, head, table, chunk_tokens)
        return _mix(hidden, head, table, chunk_tokens)[0]


def chunked_top_k_mixture(
    hidden: torch.Tensor, head: torch.Tensor, table: torch.Tensor, chunk_tokens: int, top_k: int
) -> torch.Tensor:
    """`chunked_mixture` over the `top_k` largest logits of each token alone, renormalised."""
    with torch.autocast(hidden.device.type, enabled=False):
        hidden = hidden.to(head.dtype)
        if records_gradients(hidden, head, table):
            return _TopKMixture.apply(hidden, head, table, chunk_tokens, top_k)
        return _mix_top_k(hidden, head, table, chunk_tokens, top_k)[0]


class _Mixture(torch.autograd.Function):
    """With g the gradient of the mixture u: dl = P * (g table^T - g.u), dh = dl head, and dl^T h, P^T g."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, head: torch.Tensor, table: torch.Tensor, chunk_tokens: int) -> Any:
        mixture, log_total = _mix(hidden, head, table, chunk_tokens)
        ctx.save_for_backward(hidden, head, table, mixture, log_total)
        ctx.chunk_tokens = chunk_tokens
        return mixture

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        hidden, head, table, mixture, log_total = ctx.saved_tensors
        for_hidden, for_head, for_table, _ = ctx.needs_input_grad
        grad = grads[0].contiguous()
        grad_hidden = torch.zeros_like(hidden, dtype=log_total.dtype) if for_hidden else None
        grad_head = weight_gradient(head, hidden) if for_head else None
        grad_table = weight_gradient(table, hidden) if for_table else None
        through = torch.linalg.vecdot(grad.to(log_total.dtype), mixture.to(log_total.dtype)).unsqueeze(-1)
        scratch = Scratch(hidden)
        for block in vocabulary_blocks(hidden, head, ctx.chunk_tokens):
            probabilities = probabilities_of(hidden, head[block], log_total, scratch)
            if grad_table is not None:
                torch.mm(scratch.rounded(probabilities).t(), grad, out=grad_table[block])
            if grad_hidden is None and grad_head is None:
                continue
            grad_logits = scratch.matrix("gradient", probabilities.shape[0], probabilities.shape[1])
            torch.mm(grad, table[block].t(), out=grad_logits)
            grad_logits.sub_(through).mul_(probabilities)
            if grad_head is not None:
                torch.mm(grad_logits.t(), hidden, out=grad_head[block])
            if grad_hidden is not None:
                scratch.add_product(grad_hidden, grad_logits, head[block])
        return as_dtype(hidden, grad_hidden), grad_head, grad_table, None


class _TopKMixture(torch.autograd.Function):
    """As `_Mixture`, in the chosen rows alone; what was chosen is small and is kept."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, head: torch.Tensor, table: torch.Tensor, chunk_tokens: int, top_k: int
    ) -> Any:
        mixture, probabilities, chosen = _mix_top_k(hidden, head, table, chunk_tokens, top_k)
        ctx.save_for_backward(hidden, head, table, probabilities, chosen)
        ctx.chunk_tokens = chunk_tokens
        return mixture

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        hidden, head, table, probabilities, chosen = ctx.saved_tensors
        for_hidden, for_head, for_table, _, _ = ctx.needs_input_grad
        grad_hidden = torch.empty_like(hidden) if for_hidden else None
        grad_head = torch.zeros_like(head, dtype=probabilities.dtype) if for_head else None
        grad_table = torch.zeros_like(table, dtype=probabilities.dtype) if for_table else None
        for part in _row_parts(hidden, head, ctx.chunk_tokens, chosen.shape[1]):
            grad, rows, weights = grads[0][part].unsqueeze(1), chosen[part], probabilities[part]
            if grad_table is not None:
                grad_rows = weights.unsqueeze(-1) * grad
                grad_table.index_add_(0, rows.flatten(), grad_rows.flatten(0, 1))
            grad_weights = (grad @ F.embedding(rows, table).transpose(1, 2)).squeeze(1)
            grad_logits = weights * (grad_weights - (weights * grad_weights).sum(-1, keepdim=True))
            if grad_head is not None:
                grad_rows = grad_logits.unsqueeze(-1) * hidden[part].unsqueeze(1)
                grad_head.index_add_(0, rows.flatten(), grad_rows.flatten(0, 1))
            if grad_hidden is not None:
                product = grad_logits.to(head.dtype).unsqueeze(1) @ F.embedding(rows, head)
                grad_hidden[part] = product.squeeze(1)
        return grad_hidden, as_dtype(head, grad_head), as_dtype(table, grad_table), None, None


def _mix(
    hidden: torch.Tensor, head: torch.Tensor, table: torch.Tensor, chunk_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The mixture, and log sum exp of each token's logits [tokens, 1]."""
    scratch = Scratch(hidden)
    mixture = torch.empty_like(hidden)
    log_total = hidden.new_empty(len(hidden), 1, dtype=scratch.exact)
    for part in slices(len(hidden), chunk_tokens):
        logits = scratch.logits(hidden[part], head)
        first = logits[:, :1].clone()
        torch.log_softmax(logits, -1, out=logits)
        torch.sub(first, logits[:, :1], out=log_total[part])
        torch.mm(scratch.rounded(logits.exp_()), table, out=mixture[part])
    return mixture, log_total


def _mix_top_k(
    hidden: torch.Tensor, head: torch.Tensor, table: torch.Tensor, chunk_tokens: int, top_k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The mixture, and the probabilities and numbers of the entries that each token chose, [tokens, top_k]."""
    scratch = Scratch(hidden)
    mixture = torch.empty_like(hidden)
    probabilities = hidden.new_empty(len(hidden), top_k, dtype=scratch.exact)
    chosen = torch.empty(len(hidden), top_k, dtype=torch.int64, device=hidden.device)
    for part in slices(len(hidden), chunk_tokens):
        largest, chosen[part] = scratch.logits(hidden[part], head).topk(top_k, dim=-1)
        probabilities[part] = largest.softmax(-1)
    for part in _row_parts(hidden, head, chunk_tokens, top_k):
        weights = probabilities[part].to(table.dtype).unsqueeze(1)
        mixture[part] = (weights @ F.embedding(chosen[part], table)).squeeze(1)
    return mixture, probabilities, chosen


class Scratch:
    """Named matrices in memory that is allocated once, at the size of their first and largest use."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self.hidden = hidden
        self.exact = torch.promote_types(hidden.dtype, torch.float32)
        self.memory: dict[str, torch.Tensor] = {}

    def matrix(self, name: str, rows: int, columns: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        if name not in self.memory:
            self.memory[name] = self.hidden.new_empty(rows * columns, dtype=dtype)
        return self.memory[name][: rows * columns].view(rows, columns)

    def logits(self, hidden: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        """hidden @ head^T, as rounded by the model's dtype, in float32 or float64."""
        product = torch.mm(hidden, head.t(), out=self.matrix("model", len(hidden), len(head)))
        if self.exact == self.hidden.dtype:
            return product
        return self.matrix("exact", len(hidden), len(head), self.exact).copy_(product)

    def rounded(self, exact: torch.Tensor) -> torch.Tensor:
        """The same in the model's dtype; a matrix of `logits` is overwritten where it differs."""
        if self.exact == self.hidden.dtype:
            return exact
        return self.matrix("model", exact.shape[0], exact.shape[1]).copy_(exact)

    def add_product(self, total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
        """total += left @ right."""
        if total.dtype == left.dtype:
            total.addmm_(left, right)
        else:
            total.add_(torch.mm(left, right, out=self.matrix("product", len(left), right.shape[1])))


def probabilities_of(
    hidden: torch.Tensor, head: torch.Tensor, log_total: torch.Tensor, scratch: Scratch
) -> torch.Tensor:
    return scratch.logits(hidden, head).sub_(log_total).exp_()


def records_gradients(*inputs: torch.Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)


def weight_gradient(weight: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Where the gradient of a weight is written; without tokens it is not written and stays 0."""
    return torch.empty_like(weight) if len(hidden) else torch.zeros_like(weight)


def as_dtype(like: torch.Tensor, grad: torch.Tensor | None) -> torch.Tensor | None:
    return None if grad is None else grad.to(like.dtype)


def slices(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def vocabulary_blocks(hidden: torch.Tensor, head: torch.Tensor, chunk_tokens: int) -> Iterator[slice]:
    """Blocks of the vocabulary that have, for all tokens, as many logits as a chunk has for the whole vocabulary."""
    if len(hidden) == 0:
        return iter(())
    return slices(len(head), min(len(head), max(1, chunk_tokens * len(head) // len(hidden))))


def _row_parts(hidden: torch.Tensor, head: torch.Tensor, chunk_tokens: int, top_k: int) -> Iterator[slice]:
    """Parts of the tokens whose chosen rows [part, top_k, h] take no more memory than a chunk's logits."""
    return slices(len(hidden), min(chunk_tokens, max(1, chunk_tokens * len(head) // (top_k * hidden.shape[1]))))
