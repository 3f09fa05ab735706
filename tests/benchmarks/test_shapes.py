"""Imposed halting patterns have the mean depth that they are named after."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.shapes import depths_of_mean, histogram


@settings(max_examples=50, deadline=None)
@given(mean=st.floats(1.0, 4.0), count=st.integers(64, 4096), seed=st.integers(0, 100))
def test_the_mean_is_met(mean: float, count: int, seed: int) -> None:
    depths = depths_of_mean(mean, 4, count, seed)
    assert depths.shape == (count,)
    assert set(depths.tolist()) <= {1, 2, 3, 4}
    assert depths.double().mean().item() == pytest.approx(mean, abs=2 / count + 1e-6)
    assert sum(histogram(depths, 4)) == count


def test_equal_shares_in_the_middle() -> None:
    assert histogram(depths_of_mean(2.5, 4, 400, 0), 4) == [100, 100, 100, 100]


def test_the_order_is_the_seeds() -> None:
    assert torch.equal(depths_of_mean(2.0, 4, 100, 3), depths_of_mean(2.0, 4, 100, 3))
    assert not torch.equal(depths_of_mean(2.0, 4, 100, 3), depths_of_mean(2.0, 4, 100, 4))


def test_a_mean_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="between 1 and 4"):
        depths_of_mean(4.5, 4, 10, 0)
