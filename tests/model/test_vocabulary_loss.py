"""The cross entropy over chunks of tokens is that of all tokens at once, and says which way it goes."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from pipeline.model.vocabulary_loss import cross_entropy_path, liger_serves

from .vocabulary_modules import LargestTensor, random_modules, values_and_gradients


def random_labels(*shape: int, vocabulary: int, seed: int) -> torch.Tensor:
    """About a third of them ignored."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, vocabulary, shape, generator=generator)
    return labels.masked_fill(torch.rand(shape, generator=generator) < 0.3, -100)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(0, 3),
    tokens=st.integers(0, 9),
    vocabulary=st.integers(1, 40),
    chunk_tokens=st.integers(1, 12),
    seed=st.integers(0, 2**16),
    in_float64=st.booleans(),
    reduction=st.sampled_from(["none", "mean"]),
)
def test_chunks_change_neither_values_nor_gradients(
    batch: int, tokens: int, vocabulary: int, chunk_tokens: int, seed: int, in_float64: bool, reduction: str
) -> None:
    dtype = torch.float64 if in_float64 else torch.float32
    _, head = random_modules(vocabulary, 6, seed, dtype)
    hidden = torch.randn(batch, tokens, 6, dtype=dtype)
    labels = random_labels(batch, tokens, vocabulary=vocabulary, seed=seed)
    at_once, in_chunks = (
        values_and_gradients(
            lambda states, size=size: head(states, labels=labels, reduction=reduction, chunk_tokens=size),
            hidden,
            head.weight,
        )
        for size in (0, chunk_tokens)
    )
    tolerance = 1e-12 if in_float64 else 1e-5
    for expected, found in zip(at_once, in_chunks, strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * 10)


def test_gradients_are_those_of_finite_differences() -> None:
    _, head = random_modules(9, 3, seed=2)
    hidden = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 8, -100, 3, 3])

    def loss(states: torch.Tensor, _weight: torch.Tensor) -> torch.Tensor:
        return head(states, labels=labels, chunk_tokens=2)

    assert torch.autograd.gradcheck(loss, (hidden, head.weight))


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_bf16_stays_as_near_to_float32_as_all_tokens_at_once_do(reduction: str) -> None:
    _, exact_head = random_modules(300, 16, seed=4, dtype=torch.bfloat16)
    _, head = random_modules(300, 16, seed=4, dtype=torch.bfloat16)
    exact_head.float()
    hidden = (torch.randn(40, 16) * 0.5).bfloat16()
    labels = random_labels(40, vocabulary=300, seed=4)
    exact = values_and_gradients(
        lambda states: exact_head(states, labels=labels, reduction=reduction), hidden.float(), exact_head.weight
    )
    errors = []
    for size in (0, 7):
        found = values_and_gradients(
            lambda states, size=size: head(states, labels=labels, reduction=reduction, chunk_tokens=size),
            hidden,
            head.weight,
        )
        errors.append([(a.float() - b).norm() / b.norm() for a, b in zip(found, exact, strict=True)])
    for at_once, in_chunks in zip(*errors, strict=True):
        assert in_chunks < 1.5 * at_once + 1e-3


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_frozen_weights_get_no_gradient_and_change_none_of_the_others(reduction: str) -> None:
    _, head = random_modules(23, 8, seed=5)
    hidden = torch.randn(7, 8, dtype=torch.float64)
    labels = random_labels(7, vocabulary=23, seed=5)

    def gradients(for_hidden: bool, for_head: bool) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        states = hidden.clone().requires_grad_(for_hidden)
        head.weight.requires_grad_(for_head)
        head.weight.grad = None
        head(states, labels=labels, reduction=reduction, chunk_tokens=3).square().sum().backward()
        return states.grad, head.weight.grad

    of_hidden, of_head = gradients(True, True)
    assert of_hidden is not None and of_head is not None
    alone, none = gradients(True, False)
    assert none is None and alone is not None and torch.equal(alone, of_hidden)
    none, alone = gradients(False, True)
    assert none is None and alone is not None and torch.equal(alone, of_head)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_the_loss_may_be_checkpointed(reduction: str) -> None:
    _, head = random_modules(23, 8, seed=6)
    hidden = torch.randn(7, 8, dtype=torch.float64)
    labels = random_labels(7, vocabulary=23, seed=6)

    def loss(states: torch.Tensor) -> torch.Tensor:
        return head(states.tanh(), labels=labels, reduction=reduction, chunk_tokens=3)

    def checkpointed(states: torch.Tensor) -> torch.Tensor:
        return checkpoint(loss, states, use_reentrant=False)  # type: ignore[return-value]

    plain = values_and_gradients(loss, hidden, head.weight)
    for expected, found in zip(plain, values_and_gradients(checkpointed, hidden, head.weight), strict=True):
        assert torch.equal(found, expected)


def test_a_second_backward_through_a_mean_is_refused_and_not_wrong() -> None:
    _, head = random_modules(23, 8, seed=6)
    hidden = torch.randn(7, 8, dtype=torch.float64, requires_grad=True)
    mean = head(hidden, labels=torch.arange(7), reduction="mean", chunk_tokens=3)
    (mean * 2).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="only once"):
        mean.backward()


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("frozen", [False, True])
def test_the_logits_of_all_tokens_never_exist(reduction: str, frozen: bool) -> None:
    tokens, vocabulary, chunk_tokens = 64, 50, 4
    _, head = random_modules(vocabulary, 3, seed=7)
    head.requires_grad_(not frozen)
    hidden = torch.randn(tokens, 3, dtype=torch.float64, requires_grad=True)
    labels = random_labels(tokens, vocabulary=vocabulary, seed=7)
    with LargestTensor() as largest:
        head(hidden, labels=labels, reduction=reduction, chunk_tokens=chunk_tokens).sum().backward()
    assert largest.entries <= max(chunk_tokens * vocabulary, tokens * 3)
    with LargestTensor() as unchunked:
        head(hidden, labels=labels)
    assert unchunked.entries == tokens * vocabulary


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_inference_gives_the_same_and_records_nothing(reduction: str) -> None:
    _, head = random_modules(23, 8, seed=8)
    hidden = torch.randn(7, 8, dtype=torch.float64)
    labels = random_labels(7, vocabulary=23, seed=8)
    recorded = head(hidden, labels=labels, reduction=reduction, chunk_tokens=3)
    with torch.inference_mode():
        value = head(hidden, labels=labels, reduction=reduction, chunk_tokens=3)
    torch.testing.assert_close(value, recorded.detach(), rtol=1e-14, atol=0)


def test_the_path_that_the_loss_takes_is_told() -> None:
    assert cross_entropy_path(torch.device("cpu"), 0) == "all tokens at once"
    assert cross_entropy_path(torch.device("cuda"), 0) == "all tokens at once"
    assert cross_entropy_path(torch.device("cpu"), 256) == "chunks of 256 tokens"
    has_liger = importlib.util.find_spec("liger_kernel") is not None
    fused = "liger fused linear cross entropy" if has_liger else "chunks of 256 tokens"
    assert cross_entropy_path(torch.device("cuda"), 256) == fused


def test_liger_is_left_alone_on_a_cpu() -> None:
    _, head = random_modules(5, 3, seed=0, dtype=torch.float32)
    assert not liger_serves(torch.randn(2, 3, requires_grad=True), head.weight)
