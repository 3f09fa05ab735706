"""The ponder loss against its definition in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.model.ponder_loss import depth_loss, ponder_loss


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


EDGE = math.log(1e-4 / (1 - 1e-4))


def depth_loss_by_hand(logits, depths, fraction, closing, counted):
    """The same, gate by gate."""
    distances = []
    for row in range(logits.shape[0]):
        for token in range(logits.shape[1]):
            for number in range(logits.shape[2]):
                logit = float(logits[row, token, number])
                if not counted[row, token] or depths[row, token] <= number or (logit >= EDGE) != closing:
                    continue
                distances.append((logit - EDGE if closing else EDGE - logit) + 1.0)
    taken = math.floor(fraction * logits.numel())
    return sum(sorted(distances)[:taken]) / max(1, taken)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 1), st.booleans())
def test_depth_loss_is_the_distance_of_the_nearest_gates(seed, fraction, closing):
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(2, 5, 3, generator=generator, dtype=torch.float64) * 4 - 9).requires_grad_()
    depths = torch.randint(1, 5, (2, 5), generator=generator)
    counted = torch.randint(0, 2, (2, 5), generator=generator)
    found = depth_loss(logits, depths, fraction, 1e-4, closing, counted)
    expected = depth_loss_by_hand(logits.detach(), depths, fraction, closing, counted)
    assert found.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    (gradient,) = torch.autograd.grad(found, logits)
    assert gradient.isfinite().all()
    pushed = gradient[gradient != 0]
    assert (pushed > 0).all() if closing else (pushed < 0).all()


def test_depth_loss_without_gates_to_push_is_part_of_the_graph():
    logits = torch.full((1, 4, 3), 2.0, requires_grad=True)
    for threshold, closing in ((1e-4, False), (0.0, True)):
        found = depth_loss(logits, torch.full((1, 4), 4), 0.5, threshold, closing)
        assert found.item() == 0
        (gradient,) = torch.autograd.grad(found, logits)
        assert not gradient.any()


def test_gates_that_were_never_computed_do_not_spoil_it():
    logits = torch.tensor([[[0.0, -math.inf, -math.inf]]], requires_grad=True)
    found = depth_loss(logits, torch.tensor([[1]]), 1.0, 1e-4, True)
    assert found.item() == pytest.approx((0 - EDGE + 1) / 3)
    (gradient,) = torch.autograd.grad(found, logits)
    assert gradient[0, 0].tolist() == pytest.approx([1 / 3, 0, 0])
