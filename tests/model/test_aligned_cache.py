"""K/V reuse, token by token: where a token has halted, the keys and values of its last active pass come back."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.model.aligned_cache import AlignedLayer, FullPassCache


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    passes=st.integers(1, 5),
    n=st.integers(1, 6),
    layers=st.integers(1, 3),
    earlier=st.integers(0, 3),
)
def test_a_token_keeps_the_keys_and_values_of_its_last_active_pass(
    seed: int, passes: int, n: int, layers: int, earlier: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    cache = FullPassCache(layers)
    before = torch.randn(passes, layers, 2, 2, 3, earlier, 4, generator=generator)
    for i in range(passes):
        for layer in range(layers):
            cache.append(i, layer, before[i, layer, 0], before[i, layer, 1])
    active = torch.ones(2, n, dtype=torch.bool)
    last_active = torch.zeros(2, n, dtype=torch.long)
    history, kept = [], [None] * layers
    for i in range(passes):
        last_active = torch.where(active, i, last_active)
        fresh = torch.randn(layers, 2, 2, 3, n, 4, generator=generator)
        history.append(fresh)
        for layer in range(layers):
            aligned = AlignedLayer(active, kept[layer], cache if earlier else None, i)
            key, value = aligned.update(fresh[layer, 0], fresh[layer, 1], layer)
            kept[layer] = aligned.kept  # pyright: ignore
            assert torch.equal(key[:, :, :earlier], before[i, layer, 0])
            assert torch.equal(value[:, :, :earlier], before[i, layer, 1])
            for row in range(2):
                for t in range(n):
                    expected = history[int(last_active[row, t])][layer]
                    assert torch.equal(key[row, :, earlier + t], expected[0, row, :, t])
                    assert torch.equal(value[row, :, earlier + t], expected[1, row, :, t])
        active = active & (torch.rand(2, n, generator=generator) < 0.6)
    assert cache.get_seq_length() == (earlier + n if earlier else 0)


def test_the_gradient_goes_to_the_pass_that_computed_them() -> None:
    first, second = torch.zeros(1, 1, 2, 3, requires_grad=True), torch.zeros(1, 1, 2, 3, requires_grad=True)
    before = AlignedLayer(torch.tensor([[True, True]]), None, None, 0)
    before.update(first, first, 0)
    aligned = AlignedLayer(torch.tensor([[True, False]]), before.kept, None, 1)
    key, value = aligned.update(second, second, 0)
    (key.sum() + 10 * value.sum()).backward()
    assert first.grad is not None
    assert second.grad is not None
    assert first.grad[0, 0, :, 0].tolist() == [0.0, 11.0]
    assert second.grad[0, 0, :, 0].tolist() == [11.0, 0.0]
