"""Losses from logits, against the definitions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation.perplexity import bits_per_byte, perplexity, token_nll


@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 6), st.integers(2, 9))
@settings(max_examples=20, deadline=None)
def test_nll_is_minus_the_log_probability_of_the_label(seed, rows, tokens, vocabulary):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, tokens, vocabulary, generator=generator)
    labels = torch.randint(0, vocabulary, (rows, tokens), generator=generator)
    hidden = torch.rand(rows, tokens, generator=generator) < 0.3
    nll = token_nll(logits, labels.masked_fill(hidden, -100))
    expected = -logits.softmax(-1).gather(-1, labels[..., None]).squeeze(-1).log()
    assert torch.allclose(nll, expected.masked_fill(hidden, 0.0), atol=1e-5)


def test_half_precision_logits_are_judged_in_fp32():
    logits = torch.randn(1, 3, 50_000).bfloat16()
    nll = token_nll(logits, torch.tensor([[1, 2, 3]]))
    assert nll.dtype == torch.float32
    assert torch.allclose(nll, token_nll(logits.float(), torch.tensor([[1, 2, 3]])))


def test_a_uniform_guess_over_bytes_costs_eight_bits_a_byte():
    assert bits_per_byte(math.log(256), tokens=1000, text_bytes=1000) == pytest.approx(8.0)


@given(st.floats(0.1, 10), st.integers(1, 10**6), st.integers(1, 10**6), st.integers(2, 9))
@settings(max_examples=30, deadline=None)
def test_bits_a_byte_do_not_depend_on_how_text_is_cut_into_tokens(loss, tokens, text_bytes, factor):
    # The same text in `factor` times as many tokens, each that much easier.
    finer = bits_per_byte(loss / factor, tokens * factor, text_bytes)
    assert finer == pytest.approx(bits_per_byte(loss, tokens, text_bytes))


def test_perplexity_is_the_exponential_and_never_raises():
    assert perplexity(math.log(14.32)) == pytest.approx(14.32)
    assert perplexity(1e6) == math.inf
