"""K/V reuse, token by token: where a token has halted, the keys and values of its last active pass come back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.model.aligned_cache import AlignedKeyValues


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), passes=st.integers(1, 5), n=st.integers(1, 6), layers=st.integers(1, 3))
def test_a_token_keeps_the_keys_and_values_of_its_last_active_pass(seed: int, passes: int, n: int, layers: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    aligned = AlignedKeyValues(layers)
    active = torch.ones(2, n, dtype=torch.bool)
    last_active = torch.zeros(2, n, dtype=torch.long)
    history = []
    for i in range(passes):
        last_active = torch.where(active, i, last_active)
        fresh = torch.randn(layers, 2, 2, 3, n, 4, generator=generator)
        history.append(fresh)
        aligned.start_pass(active)
        for layer in range(layers):
            key, value = aligned.update(fresh[layer, 0], fresh[layer, 1], layer)
            for row in range(2):
                for t in range(n):
                    kept = history[int(last_active[row, t])][layer]
                    assert torch.equal(key[row, :, t], kept[0, row, :, t])
                    assert torch.equal(value[row, :, t], kept[1, row, :, t])
        active = active & (torch.rand(2, n, generator=generator) < 0.6)


def test_the_gradient_goes_to_the_pass_that_computed_them() -> None:
    first, second = torch.zeros(1, 1, 2, 3, requires_grad=True), torch.zeros(1, 1, 2, 3, requires_grad=True)
    aligned = AlignedKeyValues(1)
    aligned.start_pass(torch.tensor([[True, True]]))
    aligned.update(first, first, 0)
    aligned.start_pass(torch.tensor([[True, False]]))
    key, value = aligned.update(second, second, 0)
    (key.sum() + 10 * value.sum()).backward()
    assert first.grad is not None
    assert second.grad is not None
    assert first.grad[0, 0, :, 0].tolist() == [0.0, 11.0]
    assert second.grad[0, 0, :, 0].tolist() == [11.0, 0.0]


def test_aligning_without_a_mask_is_refused() -> None:
    aligned = AlignedKeyValues(1)
    aligned.update(torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 2, 3), 0)
    with pytest.raises(RuntimeError, match="start_pass"):
        aligned.update(torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 2, 3), 0)
