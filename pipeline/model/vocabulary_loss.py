"""The cross entropy without the logits of all tokens: in chunks, or through Liger's fused kernel where it is installed.

Of a sum, the gradients are known but for one factor when its chunk is at hand: they are computed there, which saves
computing the logits twice. Values that may each get a gradient of their own compute them again.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from .vocabulary_chunks import (
    Scratch,
    as_dtype,
    probabilities_of,
    records_gradients,
    slices,
    vocabulary_blocks,
    weight_gradient,
)

IGNORED = -100
"""The label that does not count, as in torch."""


def chunked_negative_log_likelihood(
    hidden: torch.Tensor, head: torch.Tensor, labels: torch.Tensor, chunk_tokens: int
) -> torch.Tensor:
    """-log softmax(hidden @ head^T)[label], float32 or float64 [tokens]; 0 where the label is -100.

    hidden: [tokens, h]. head: [vocabulary, h]. labels: int64 [tokens].
    """
    with torch.autocast(hidden.device.type, enabled=False):
        hidden = hidden.to(head.dtype)
        if records_gradients(hidden, head):
            return _NegativeLogLikelihood.apply(hidden, head, labels, chunk_tokens)
        return _likelihood(hidden, head, labels, chunk_tokens)[0]


def chunked_summed_likelihood(
    hidden: torch.Tensor, head: torch.Tensor, labels: torch.Tensor, chunk_tokens: int
) -> torch.Tensor:
    """The sum of `chunked_negative_log_likelihood` over the tokens, a scalar."""
    # In 16 bits a weight gradient that is added up chunk by chunk would need a second one in 32 bits beside it.
    exact = head.dtype == torch.promote_types(head.dtype, torch.float32)
    if exact and records_gradients(hidden, head):
        with torch.autocast(hidden.device.type, enabled=False):
            return _SummedLikelihood.apply(hidden.to(head.dtype), head, labels, chunk_tokens)
    return chunked_negative_log_likelihood(hidden, head, labels, chunk_tokens).sum()


def cross_entropy_path(device: torch.device, chunk_tokens: int) -> str:
    """In words, which way `VocabularyHead` computes a mean cross entropy in training on this device."""
    if not chunk_tokens:
        return "all tokens at once"
    if device.type == "cuda" and _liger_loss() is not None:
        return "liger fused linear cross entropy"
    return f"chunks of {chunk_tokens} tokens"


def liger_serves(hidden: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether Liger is installed and can take these: on CUDA, of at most 32 bits, one token or more.

    It derives no gradient for the weight where the hidden states need none.
    """
    if (
        hidden.numel() == 0
        or hidden.device.type != "cuda"
        or hidden.dtype != weight.dtype
        or hidden.dtype == torch.float64
    ):
        return False
    if torch.is_grad_enabled() and weight.requires_grad and not hidden.requires_grad:
        return False
    return _liger_loss() is not None


def liger_cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The sum over the labels that are not -100, float32, in nats. hidden: [tokens, h]. labels: int64 [tokens]."""
    loss = _liger_loss()
    if loss is None:
        raise RuntimeError("liger_kernel is not installed")
    return loss(weight, hidden, labels)


class _NegativeLogLikelihood(torch.autograd.Function):
    """With g the gradient of each token's value: dl = g (P - onehot(label)), dh = dl head, and dl^T h."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, head: torch.Tensor, labels: torch.Tensor, chunk_tokens: int) -> Any:
        values, log_total = _likelihood(hidden, head, labels, chunk_tokens)
        ctx.save_for_backward(hidden, head, labels, log_total)
        ctx.chunk_tokens = chunk_tokens
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        hidden, head, labels, log_total = ctx.saved_tensors
        for_hidden, for_head, _, _ = ctx.needs_input_grad
        grad = grads[0].masked_fill(labels == IGNORED, 0).unsqueeze(-1)
        grad_hidden = torch.zeros_like(hidden, dtype=log_total.dtype) if for_hidden else None
        grad_head = weight_gradient(head, hidden) if for_head else None
        weighted = (hidden * grad).to(hidden.dtype)
        scratch = Scratch(hidden)
        for block in vocabulary_blocks(hidden, head, ctx.chunk_tokens):
            difference = probabilities_of(hidden, head[block], log_total, scratch)
            column = labels.unsqueeze(-1) - block.start
            here = (column >= 0) & (column < difference.shape[1])
            difference.scatter_add_(1, column.clamp(0, difference.shape[1] - 1), -here.to(difference.dtype))
            difference = scratch.rounded(difference)
            if grad_head is not None:
                torch.mm(difference.t(), weighted, out=grad_head[block])
            if grad_hidden is not None:
                scratch.add_product(grad_hidden, difference, head[block])
        if grad_hidden is not None:
            grad_hidden.mul_(grad)
        return as_dtype(hidden, grad_hidden), grad_head, None, None


class _SummedLikelihood(torch.autograd.Function):
    """The gradients of `_NegativeLogLikelihood` for g = 1, computed in forward and scaled in backward, in place."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, head: torch.Tensor, labels: torch.Tensor, chunk_tokens: int) -> Any:
        for_hidden, for_head, _, _ = ctx.needs_input_grad
        grad_hidden = torch.empty_like(hidden) if for_hidden else None
        grad_head = weight_gradient(head, hidden) if for_head else None
        total = hidden.new_zeros(())
        counted = (labels != IGNORED).unsqueeze(-1)
        column = labels.unsqueeze(-1).masked_fill(~counted, 0)
        ones = torch.ones_like(column, dtype=hidden.dtype)
        weighted = hidden * counted
        scratch = Scratch(hidden)
        for part in slices(len(hidden), chunk_tokens):
            logits = scratch.logits(hidden[part], head)
            torch.log_softmax(logits, -1, out=logits)
            total -= logits.gather(1, column[part]).mul_(counted[part]).sum()
            difference = logits.exp_().scatter_add_(1, column[part], -ones[part])
            if grad_head is not None:
                grad_head.addmm_(difference.t(), weighted[part], beta=0 if part.start == 0 else 1)
            if grad_hidden is not None:
                torch.mm(difference, head, out=grad_hidden[part])
        if grad_hidden is not None:
            grad_hidden.mul_(counted)
        ctx.save_for_backward(grad_hidden, grad_head)
        ctx.scaled = False
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        if ctx.scaled:
            raise RuntimeError(
                "a mean cross entropy in chunks goes backward only once: its gradients are scaled in place"
            )
        ctx.scaled = True
        grad_hidden, grad_head = (None if grad is None else grad.mul_(grads[0]) for grad in ctx.saved_tensors)
        return grad_hidden, grad_head, None, None


def _likelihood(
    hidden: torch.Tensor, head: torch.Tensor, labels: torch.Tensor, chunk_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The negative log likelihood of each label, and log sum exp of each token's logits [tokens, 1]."""
    scratch = Scratch(hidden)
    values = hidden.new_empty(len(hidden), 1, dtype=scratch.exact)
    log_total = torch.empty_like(values)
    ignored = (labels == IGNORED).unsqueeze(-1)
    column = labels.unsqueeze(-1).masked_fill(ignored, 0)
    for part in slices(len(hidden), chunk_tokens):
        logits = scratch.logits(hidden[part], head)
        first = logits[:, :1].clone()
        torch.log_softmax(logits, -1, out=logits)
        torch.sub(first, logits[:, :1], out=log_total[part])
        torch.gather(logits, 1, column[part], out=values[part])
    return values.neg_().masked_fill_(ignored, 0).squeeze(-1), log_total


@cache
def _liger_loss() -> Any:
    """Liger's loss, which sums: its mean of no labels would be NaN. None where it is not installed."""
    try:
        liger = import_module("liger_kernel.transformers")
    except ImportError:
        return None
    return liger.LigerFusedLinearCrossEntropyLoss(ignore_index=IGNORED, reduction="sum", accum_dtype=torch.float32)
