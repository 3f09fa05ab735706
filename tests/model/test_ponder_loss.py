"""The ponder loss against its definition in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.model.ponder_loss import ponder_loss


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(0, 4)),
    fraction=st.floats(0, 1),
    padded=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_it_is_the_mean_of_the_smallest_values(
    shape: tuple[int, int, int], fraction: float, padded: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    mask = torch.randint(0, 2, shape[:2], generator=generator) if padded else None
    counted = torch.ones(shape[:2]).bool() if mask is None else mask.bool()
    ascending = sorted(values[counted].flatten().tolist())
    taken = ascending[: math.floor(fraction * len(ascending))]
    loss = ponder_loss(values, fraction, mask)
    assert loss.item() == pytest.approx(sum(taken) / max(len(taken), 1), abs=1e-12)
    loss.backward()
    assert values.grad is not None
    expected = torch.where(
        counted.unsqueeze(-1) & (values <= (taken[-1] if taken else -math.inf)), 1 / max(len(taken), 1), 0.0
    )
    torch.testing.assert_close(values.grad, expected.to(values.dtype))


def test_a_fraction_that_takes_none_leaves_the_gates_in_the_graph() -> None:
    values = torch.tensor([[[0.2, 1.0], [0.5, 0.7]]], requires_grad=True)
    loss = ponder_loss(values, 0.2)
    loss.backward()
    assert loss.item() == 0.0
    assert values.grad is not None
    assert values.grad.tolist() == [[[0.0, 0.0], [0.0, 0.0]]]


@pytest.mark.parametrize("fraction", [-0.01, 1.01])
def test_a_fraction_that_is_none_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="ponder_fraction"):
        ponder_loss(torch.zeros(1, 2, 3), fraction)
