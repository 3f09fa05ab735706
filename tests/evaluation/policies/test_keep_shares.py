from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.policies.imposed import RowCounts
from pipeline.evaluation.policies.keep_shares import keep_shares, policy_names

POLICIES = policy_names([0.1, 0.3, 0.5, 0.7, 0.9])


@given(st.sampled_from(POLICIES), st.integers(1, 6), st.floats(0, 1))
def test_shares_spend_what_is_given_and_never_rise(policy, max_passes, full):
    mean_depth = 1 + full * (max_passes - 1)
    shares = keep_shares(policy, mean_depth, max_passes)
    assert len(shares) == max_passes - 1
    assert sum(shares) == pytest.approx(mean_depth - 1, abs=1e-9)
    assert all(0 <= share <= 1 + 1e-12 for share in shares)
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(shares))


def test_their_shapes():
    assert keep_shares("uniform", 2.5, 4) == [0.5, 0.5, 0.5]
    assert keep_shares("constant ratio", 1.875, 4) == pytest.approx([0.5, 0.25, 0.125])
    assert keep_shares("geometric 0.1", 1.555, 4) == pytest.approx([0.5, 0.05, 0.005])
    # What the second pass cannot take goes to the third.
    assert keep_shares("geometric 0.1", 3.5, 4) == pytest.approx([1.0, 1.0, 0.5])
    assert keep_shares("uniform", 1.0, 1) == []


@pytest.mark.parametrize("mean_depth", [0.9, 4.1])
def test_what_cannot_be_spent_is_refused(mean_depth):
    with pytest.raises(ValueError, match="not within 1 to 4"):
        keep_shares("uniform", mean_depth, 4)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=4), st.lists(st.integers(0, 50), min_size=1, max_size=30))
def test_counts_of_rows_follow_the_shares_to_within_a_token(shares, rows):
    shares = sorted(shares, reverse=True)
    counts = RowCounts(shares)
    given = [0] * len(shares)
    tokens = 0
    for row in rows:
        tokens += row
        before = row
        for number, count in enumerate(counts.next(row)):
            assert 0 <= count <= before
            before = count
            given[number] += count
    assert all(abs(total - share * tokens) <= 1.5 for total, share in zip(given, shares, strict=True))
