"""What the two modules give: ids, mixtures, logits and losses, against the formulas on plain tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from .vocabulary_modules import random_modules


def test_ids_give_rows_of_the_table_and_hidden_states_give_logits() -> None:
    table, head = random_modules(11, 4, seed=0)
    ids = torch.tensor([[3, 0], [10, 3]])
    assert torch.equal(table(ids), table.weight[ids])
    hidden = torch.randn(2, 2, 4, dtype=torch.float64)
    assert torch.equal(head(hidden), F.linear(hidden, head.weight))


@pytest.mark.parametrize("chunk_tokens", [0, 2])
def test_the_mixture_is_the_mean_embedding_under_the_heads_distribution(chunk_tokens: int) -> None:
    table, head = random_modules(11, 4, seed=0)
    hidden = torch.randn(2, 3, 4, dtype=torch.float64)
    expected = torch.softmax(hidden @ head.weight.T, -1) @ table.weight
    torch.testing.assert_close(table(hidden, head=head, chunk_tokens=chunk_tokens), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk_tokens", [0, 2])
def test_the_top_k_mixture_leaves_all_but_the_largest_logits_out(chunk_tokens: int) -> None:
    table, head = random_modules(11, 4, seed=0)
    hidden = torch.randn(2, 3, 4, dtype=torch.float64)
    logits = hidden @ head.weight.T
    left_out = logits < logits.sort(-1).values[..., -5:-4]
    expected = torch.softmax(logits.masked_fill(left_out, -torch.inf), -1) @ table.weight
    mixture = table(hidden, head=head, chunk_tokens=chunk_tokens, top_k=5)
    torch.testing.assert_close(mixture, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk_tokens", [0, 2])
def test_likelihoods_are_one_a_label_and_zero_where_it_is_ignored(chunk_tokens: int) -> None:
    _, head = random_modules(11, 4, seed=0)
    hidden = torch.randn(2, 3, 4, dtype=torch.float64)
    labels = torch.tensor([[3, -100, 0], [10, 10, -100]])
    values = head(hidden, labels=labels, chunk_tokens=chunk_tokens)
    expected = [
        [0.0 if label == -100 else -torch.log_softmax(head.weight @ state, 0)[label].item() for label, state in pairs]
        for pairs in (zip(row, states, strict=True) for row, states in zip(labels.tolist(), hidden, strict=True))
    ]
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    mean = head(hidden, labels=labels, reduction="mean", chunk_tokens=chunk_tokens)
    torch.testing.assert_close(mean, values.sum() / 4, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk_tokens", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_likelihoods_are_float32_where_the_model_has_at_most_that(chunk_tokens: int, dtype: torch.dtype) -> None:
    _, head = random_modules(11, 4, seed=0, dtype=dtype)
    hidden = torch.randn(3, 4).to(dtype)
    labels = torch.tensor([1, 2, 3])
    for reduction in ("none", "mean"):
        value = head(hidden, labels=labels, reduction=reduction, chunk_tokens=chunk_tokens)
        assert value.dtype == torch.float32


@pytest.mark.parametrize("chunk_tokens", [0, 2])
def test_a_mean_of_no_labels_is_zero_and_sends_zero_gradients(chunk_tokens: int) -> None:
    _, head = random_modules(11, 4, seed=0)
    hidden = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    mean = head(hidden, labels=torch.full((3,), -100), reduction="mean", chunk_tokens=chunk_tokens)
    assert mean.item() == 0.0
    for gradient in torch.autograd.grad(mean, [hidden, head.weight]):
        assert not gradient.any()


def test_the_head_is_called_inside_the_embeddings_forward_so_that_both_weights_are_gathered() -> None:
    table, head = random_modules(11, 4, seed=0)
    calls: list[str] = []
    named: list[tuple[str, nn.Module]] = [("table", table), ("head", head)]
    for name, module in named:

        def entered(_module: nn.Module, _inputs: Any, name: str = name) -> None:
            calls.append(f"{name} begins")

        def left(_module: nn.Module, _inputs: Any, _output: Any, name: str = name) -> None:
            calls.append(f"{name} ends")

        module.register_forward_pre_hook(entered)
        module.register_forward_hook(left)
    table(torch.randn(3, 4, dtype=torch.float64), head=head, chunk_tokens=2)
    assert calls == ["table begins", "head begins", "head ends", "table ends"]


def test_mistakes_are_refused() -> None:
    table, head = random_modules(11, 4, seed=0)
    hidden, labels = torch.randn(3, 4, dtype=torch.float64), torch.tensor([1, 2, 3])
    with pytest.raises(ValueError, match="without the head"):
        table(hidden)
    with pytest.raises(ValueError, match="chunk_tokens is -1"):
        head(hidden, chunk_tokens=-1)
    with pytest.raises(ValueError, match="top_k is -1"):
        table(hidden, head=head, top_k=-1)
    with pytest.raises(ValueError, match="reduction is 'sum'"):
        head(hidden, labels=labels, reduction="sum")
    with pytest.raises(ValueError, match="table and labels"):
        head(hidden, table=table, labels=labels)
