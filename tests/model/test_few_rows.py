"""The products that decoding takes on a CPU are the ordinary ones, up to rounding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pipeline.model.few_rows import BLOCK, FEW, few_rows_linear, few_rows_product, serves_few_rows
from tests.model.tiny_adaponder import halting_config, random_model, random_tokens


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, FEW + 2),
    inner=st.integers(1, 40),
    outer=st.sampled_from([1, 30, BLOCK - 1, BLOCK, 2 * BLOCK + 17]),
    bias=st.booleans(),
)
def test_the_same_products(rows: int, inner: int, outer: int, bias: bool) -> None:
    torch.manual_seed(rows * inner + outer)
    layer = torch.nn.Linear(inner, outer, bias=bias).double()
    left, shares = torch.randn(rows, inner).double(), torch.rand(rows, outer).double()
    with torch.no_grad():
        wide = few_rows_linear(layer, left)
        assert wide.is_contiguous()
        torch.testing.assert_close(wide, F.linear(left, layer.weight, layer.bias))
        torch.testing.assert_close(few_rows_product(shares, layer.weight), shares @ layer.weight)


def test_what_they_serve() -> None:
    weight = torch.zeros(5, 3)
    with torch.no_grad():
        assert serves_few_rows(torch.zeros(FEW, 3), weight)
        assert not serves_few_rows(torch.zeros(FEW + 1, 3), weight)
        assert not serves_few_rows(torch.zeros(0, 3), weight)
        assert not serves_few_rows(torch.zeros(2, 3).bfloat16(), weight)
        assert not serves_few_rows(torch.zeros(2, 3), torch.zeros(0)), "a weight that lies on other ranks"
    assert not serves_few_rows(torch.zeros(2, 3), weight), "gradients are recorded"


@pytest.mark.parametrize("top_k", [0, 4])
def test_a_network_with_a_large_vocabulary_decodes_the_same(top_k: int) -> None:
    model = random_model(halting_config(vocab_size=2 * BLOCK + 5, mixture_top_k=top_k), seed=61)
    tokens = random_tokens(2, 3, seed=61)
    with torch.no_grad():
        plain = model(tokens).logits
        model.config.halting = "skip"
        torch.testing.assert_close(model(tokens).logits, plain, rtol=0, atol=1e-9)
