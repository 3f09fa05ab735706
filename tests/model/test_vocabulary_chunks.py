"""Mixtures over chunks of tokens are those of all tokens at once, in values, gradients and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from .vocabulary_modules import LargestTensor, random_modules, values_and_gradients

SHAPES: dict[str, Any] = {
    "batch": st.integers(0, 3),
    "tokens": st.integers(0, 9),
    "vocabulary": st.integers(1, 40),
    "chunk_tokens": st.integers(1, 12),
    "seed": st.integers(0, 2**16),
}


@settings(max_examples=60, deadline=None)
@given(**SHAPES, in_float64=st.booleans(), top_k=st.integers(0, 45))
def test_chunks_change_neither_values_nor_gradients(
    batch: int, tokens: int, vocabulary: int, chunk_tokens: int, seed: int, in_float64: bool, top_k: int
) -> None:
    dtype = torch.float64 if in_float64 else torch.float32
    table, head = random_modules(vocabulary, 6, seed, dtype)
    hidden = torch.randn(batch, tokens, 6, dtype=dtype)
    at_once, in_chunks = (
        values_and_gradients(
            lambda states, size=size: table(states, head=head, chunk_tokens=size, top_k=top_k),
            hidden,
            table.weight,
            head.weight,
        )
        for size in (0, chunk_tokens)
    )
    tolerance = 1e-12 if in_float64 else 1e-5
    for expected, found in zip(at_once, in_chunks, strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * 10)


@pytest.mark.parametrize("top_k", [23, 40])
@pytest.mark.parametrize("chunk_tokens", [0, 4])
def test_a_top_k_of_the_whole_vocabulary_leaves_nothing_out(top_k: int, chunk_tokens: int) -> None:
    table, head = random_modules(23, 8, seed=3)
    hidden = torch.randn(7, 8, dtype=torch.float64)
    full, top = (
        values_and_gradients(
            lambda states, size=size, k=k: table(states, head=head, chunk_tokens=size, top_k=k),
            hidden,
            table.weight,
            head.weight,
        )
        for size, k in ((0, 0), (chunk_tokens, top_k))
    )
    for expected, found in zip(full, top, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("top_k", [0, 4])
def test_gradients_are_those_of_finite_differences(top_k: int) -> None:
    table, head = random_modules(9, 3, seed=2)
    hidden = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)

    def mixture(states: torch.Tensor, *_weights: torch.Tensor) -> torch.Tensor:
        return table(states, head=head, chunk_tokens=2, top_k=top_k)

    assert torch.autograd.gradcheck(mixture, (hidden, table.weight, head.weight))


@pytest.mark.parametrize("top_k", [0, 6])
def test_bf16_stays_as_near_to_float32_as_all_tokens_at_once_do(top_k: int) -> None:
    exact_table, exact_head = random_modules(300, 16, seed=4, dtype=torch.bfloat16)
    table, head = random_modules(300, 16, seed=4, dtype=torch.bfloat16)
    exact_table.float()
    exact_head.float()
    hidden = (torch.randn(40, 16) * 0.5).bfloat16()
    exact = values_and_gradients(
        lambda states: exact_table(states, head=exact_head, top_k=top_k),
        hidden.float(),
        exact_table.weight,
        exact_head.weight,
    )
    errors = []
    for size in (0, 7):
        found = values_and_gradients(
            lambda states, size=size: table(states, head=head, chunk_tokens=size, top_k=top_k),
            hidden,
            table.weight,
            head.weight,
        )
        assert all(tensor.dtype == torch.bfloat16 for tensor in found)
        errors.append([(a.float() - b).norm() / b.norm() for a, b in zip(found, exact, strict=True)])
    for at_once, in_chunks in zip(*errors, strict=True):
        assert in_chunks < 1.5 * at_once + 1e-3


@pytest.mark.parametrize("top_k", [0, 6])
def test_frozen_weights_get_no_gradient_and_change_none_of_the_others(top_k: int) -> None:
    table, head = random_modules(23, 8, seed=5)
    hidden = torch.randn(7, 8, dtype=torch.float64)

    def gradients(*names: str) -> dict[str, torch.Tensor]:
        inputs = {"hidden": hidden.clone(), "table": table.weight, "head": head.weight}
        for name, tensor in inputs.items():
            tensor.requires_grad_(name in names)
            tensor.grad = None
        table(inputs["hidden"], head=head, chunk_tokens=3, top_k=top_k).square().sum().backward()
        return {name: tensor.grad for name, tensor in inputs.items() if tensor.grad is not None}

    every = gradients("hidden", "table", "head")
    for names in (("hidden",), ("table",), ("head",), ("hidden", "head")):
        found = gradients(*names)
        assert set(found) == set(names)
        for name in names:
            assert torch.equal(found[name], every[name])


@pytest.mark.parametrize("top_k", [0, 6])
def test_one_graph_may_use_the_weights_many_times_and_be_checkpointed(top_k: int) -> None:
    table, head = random_modules(23, 8, seed=6)
    hidden = torch.randn(7, 8, dtype=torch.float64)

    def passes(states: torch.Tensor, chunk_tokens: int, checkpointed: bool) -> torch.Tensor:
        def one_pass(states: torch.Tensor) -> torch.Tensor:
            return states + table(states.tanh(), head=head, chunk_tokens=chunk_tokens, top_k=top_k)

        for _ in range(3):
            states = checkpoint(one_pass, states, use_reentrant=False) if checkpointed else one_pass(states)  # type: ignore[assignment]
        return states

    expected, plain, checkpointed = (
        values_and_gradients(lambda states, kind=kind: passes(states, *kind), hidden, table.weight, head.weight)
        for kind in ((0, False), (3, False), (3, True))
    )
    for i, reference in enumerate(expected):
        torch.testing.assert_close(plain[i], reference, rtol=1e-11, atol=1e-11)
        assert torch.equal(checkpointed[i], plain[i])


@pytest.mark.parametrize("top_k", [0, 3])
@pytest.mark.parametrize("frozen", [False, True])
def test_the_logits_of_all_tokens_never_exist(top_k: int, frozen: bool) -> None:
    tokens, vocabulary, chunk_tokens = 64, 50, 4
    table, head = random_modules(vocabulary, 3, seed=7)
    table.requires_grad_(not frozen)
    head.requires_grad_(not frozen)
    hidden = torch.randn(tokens, 3, dtype=torch.float64, requires_grad=True)
    with LargestTensor() as largest:
        table(hidden, head=head, chunk_tokens=chunk_tokens, top_k=top_k).sum().backward()
    assert largest.entries <= max(chunk_tokens * vocabulary, tokens * 3)
    with LargestTensor() as unchunked:
        table(hidden, head=head)
    assert unchunked.entries == tokens * vocabulary


def test_inference_gives_the_same_and_records_nothing() -> None:
    table, head = random_modules(23, 8, seed=8)
    hidden = torch.randn(7, 8, dtype=torch.float64)
    recorded = table(hidden, head=head, chunk_tokens=3)
    assert recorded.requires_grad
    with torch.inference_mode():
        assert torch.equal(table(hidden, head=head, chunk_tokens=3), recorded.detach())
    table.requires_grad_(False)
    head.requires_grad_(False)
    unrecorded = table(hidden, head=head, chunk_tokens=3)
    assert not unrecorded.requires_grad
    assert torch.equal(unrecorded, recorded.detach())


def test_large_logits_do_not_overflow() -> None:
    table, head = random_modules(23, 8, seed=9, dtype=torch.float32)
    hidden = torch.randn(7, 8) * 1e4
    at_once, in_chunks = (
        values_and_gradients(
            lambda states, size=size: table(states, head=head, chunk_tokens=size), hidden, table.weight, head.weight
        )
        for size in (0, 3)
    )
    for expected, found in zip(at_once, in_chunks, strict=True):
        assert found.isfinite().all()
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)
