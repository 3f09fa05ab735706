"""Sums by depth, against counting token by token."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation.depth import DepthSums

batches = st.lists(st.integers(0, 2**31), min_size=1, max_size=4)


def batch(seed, passes):
    generator = torch.Generator().manual_seed(seed)
    nll = torch.rand(3, 5, generator=generator)
    depths = torch.randint(1, passes + 1, (3, 5), generator=generator)
    labels = torch.randint(-1, 9, (3, 5), generator=generator).clamp(min=0)
    labels[0, 0] = 1
    labels[1, 3:] = -100
    return nll, depths, labels


@given(batches, st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_sums_equal_counting_token_by_token(seeds, passes):
    sums = DepthSums(passes)
    seen: list[tuple[int, float]] = []
    for seed in seeds:
        nll, depths, labels = batch(seed, passes)
        sums.add(nll, depths, labels)
        rows = zip(nll.flatten().tolist(), depths.flatten().tolist(), labels.flatten().tolist(), strict=True)
        seen += [(depth, loss) for loss, depth, label in rows if label != -100]
    count = len(seen)
    assert sums.total_tokens == count
    assert sums.loss == pytest.approx(sum(loss for _, loss in seen) / count)
    assert sums.mean_depth == pytest.approx(sum(depth for depth, _ in seen) / count)
    assert sums.halted_share == pytest.approx([sum(d <= k for d, _ in seen) / count for k in range(1, passes)])
    for depth, found in enumerate(sums.loss_by_depth, start=1):
        losses = [loss for d, loss in seen if d == depth]
        assert found == (pytest.approx(sum(losses) / len(losses)) if losses else None)


@given(batches)
@settings(max_examples=10, deadline=None)
def test_sums_of_parts_add_up_to_the_sums_of_all(seeds):
    whole, parts = DepthSums(4), DepthSums(4)
    for seed in seeds:
        part = DepthSums(4)
        whole.add(*batch(seed, 4))
        part.add(*batch(seed, 4))
        parts = parts + part
    assert torch.equal(parts.tokens, whole.tokens)
    assert torch.allclose(parts.nll, whole.nll)


def test_mean_depth_and_halted_shares_tell_the_same():
    sums = DepthSums(4)
    sums.add(*batch(0, 4))
    assert sums.mean_depth == pytest.approx(4 - sum(sums.halted_share))
