"""Perplexity and bits a byte, against the definitions."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation.perplexity import bits_per_byte, perplexity


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
