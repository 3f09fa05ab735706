"""A weight takes what it says, to within one document, without favour, and the same documents every time."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenization.weights import Weight

weights = st.decimals(min_value="0.01", max_value="4", places=2).map(float)


def taken(weight: float, by, lengths: list[int], seed: int = 0, part: int = 0) -> list[list[int]]:
    """By pass the numbers of the documents taken."""
    chosen: Weight[int] = Weight(weight, by, seed, part)
    passes = [
        [number for place, length in enumerate(lengths) for number in chosen.take(one, place, length)]
        for one in range(chosen.passes)
    ]
    if passes:
        passes[-1] += chosen.rest()
    return passes


@settings(max_examples=500, deadline=None)
@given(weight=weights, lengths=st.lists(st.integers(1, 500), max_size=200), seed=st.integers(0, 99))
def test_documents_are_taken_exactly(weight: float, lengths: list[int], seed: int) -> None:
    passes = taken(weight, "documents", lengths, seed)
    assert all(whole == list(range(len(lengths))) for whole in passes[: int(weight)])
    assert all(len(set(one)) == len(one) for one in passes)
    wanted = Fraction(str(weight)) * len(lengths)
    assert abs(sum(map(len, passes)) - wanted) <= 1
    assert taken(weight, "documents", lengths, seed) == passes


@settings(max_examples=500, deadline=None)
@given(weight=weights, lengths=st.lists(st.integers(1, 500), min_size=1, max_size=200), seed=st.integers(0, 99))
def test_tokens_are_taken_to_within_the_longest_document(weight: float, lengths: list[int], seed: int) -> None:
    passes = taken(weight, "tokens", lengths, seed)
    got = sum(lengths[number] for one in passes for number in one)
    assert abs(got - Fraction(str(weight)) * sum(lengths)) <= max(lengths)


@pytest.mark.parametrize("by", ["documents", "tokens"])
@pytest.mark.parametrize("weight", [0.1, 0.3, 0.8])
@pytest.mark.parametrize("lengths", [[5], [1, 100], [30, 7, 400]])
def test_no_document_is_favoured_however_few_there_are(by, weight: float, lengths: list[int]) -> None:
    parts = 4000
    counts = [0] * len(lengths)
    for part in range(parts):
        for one in taken(weight, by, lengths, part=part):
            for number in one:
                counts[number] += 1
    for count in counts:
        assert abs(count / parts - weight) < 0.035  # five standard deviations


@pytest.mark.parametrize("by", ["documents", "tokens"])
def test_parts_and_seeds_choose_differently(by) -> None:
    lengths = [7, 30, 11, 400, 9] * 40
    choices = [taken(0.5, by, lengths, seed, part) for seed, part in ((0, 0), (0, 1), (1, 0))]
    assert choices[0] != choices[1]
    assert choices[0] != choices[2]


def test_a_weight_of_one_takes_all_once() -> None:
    assert taken(1.0, "documents", [1, 2, 3]) == [[0, 1, 2]]
    assert Weight(2.0, "tokens", 0, 0).passes == 2
    assert Weight(0.25, "tokens", 0, 0).passes == 1
