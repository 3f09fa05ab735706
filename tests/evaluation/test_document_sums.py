from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.document_sums import DocumentSums, interval, joined

END = 0


def sums_of(ids: torch.Tensor, nll: torch.Tensor, counted: torch.Tensor, batch: int) -> DocumentSums:
    sums = DocumentSums(["a", "b"], END)
    sums.begin()
    for first in range(0, len(ids), batch):
        part = slice(first, first + batch)
        sums.add(ids[part], counted[part], nll[:, part])
    return sums


@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 2**31))
def test_sums_are_those_of_a_plain_loop_whatever_the_size_of_a_batch(batch, rows, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 4, (rows, 5), generator=generator)
    nll = torch.rand((2, rows, 5), generator=generator)
    counted = torch.rand((rows, 5), generator=generator) < 0.8
    counted[0, 0] = True
    expected: dict[int, list[float]] = {}
    document = 0
    for row in range(rows):
        for place in range(5):
            if counted[row, place]:
                entry = expected.setdefault(document, [0, 0.0, 0.0])
                entry[0] += 1
                entry[1] += float(nll[0, row, place])
                entry[2] += float(nll[1, row, place])
            document += int(ids[row, place] == END)
    tokens, found = sums_of(ids, nll, counted, batch).totals()
    assert tokens.tolist() == [entry[0] for entry in expected.values()]
    np.testing.assert_allclose(found, np.array([entry[1:] for entry in expected.values()]).T, rtol=1e-6)


def test_another_set_begins_another_document():
    sums = DocumentSums(["a"], END)
    for _ in range(2):
        sums.begin()
        sums.add(torch.tensor([[5, 5]]), torch.ones(1, 2, dtype=torch.bool), torch.ones(1, 1, 2))
    tokens, _ = sums.totals()
    assert tokens.tolist() == [2, 2]


def test_draws_are_the_seeds_and_spread_as_documents_do():
    generator = torch.Generator().manual_seed(1)
    ids = torch.zeros(400, 1, dtype=torch.int64)  # every token is a document
    nll = torch.randn((2, 400, 1), generator=generator) + 3
    nll[1] = nll[0] + 0.5
    sums = sums_of(ids, nll, torch.ones_like(ids, dtype=torch.bool), 100)
    draws = sums.bootstrap(500, seed=3)
    assert np.array_equal(draws, sums.bootstrap(500, seed=3))
    assert not np.array_equal(draws, sums.bootstrap(500, seed=4))
    assert abs(draws[:, 0].std() - 1 / np.sqrt(400)) < 0.01
    low, high = interval(draws[:, 1] - draws[:, 0])
    assert abs(low - 0.5) < 1e-6 and abs(high - 0.5) < 1e-6, "the same draws: a constant difference is sure"


def test_the_standard_error_is_that_of_drawing_documents_again():
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, 6, (300, 8), generator=generator)
    nll = torch.rand((2, 300, 8), generator=generator) * 4
    sums = sums_of(ids, nll, torch.ones_like(ids, dtype=torch.bool), 64)
    draws = sums.bootstrap(2000, seed=1)
    error = sums.standard_error("b")
    assert error is not None
    assert abs(error / draws[:, 1].std() - 1) < 0.1


def test_sets_together_hold_the_documents_of_each():
    parts = [
        sums_of(torch.full((2, 3), 5), torch.full((2, 2, 3), float(number)), torch.ones(2, 3).bool(), 1)
        for number in (1, 2)
    ]
    both = joined(parts)
    tokens, nll = both.totals()
    assert tokens.tolist() == [6, 6]
    assert nll.tolist() == [[6, 12], [6, 12]]
    assert both.standard_error("a") is not None
    assert parts[0].standard_error("a") is None
