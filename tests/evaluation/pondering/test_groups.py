from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.pondering.groups import by_depth, by_frequency, by_kind, by_position, by_source
from pipeline.evaluation.pondering.token_kinds import KINDS, kind_of
from pipeline.evaluation.pondering.tokens import Tokens

SEQ_LEN = 40


def tokens_of(size: int, seed: int) -> Tokens:
    generator = np.random.default_rng(seed)
    depths = generator.integers(1, 4, size)
    gates = generator.random((size, 2), dtype=np.float32)
    gates[np.arange(2) >= depths[:, None]] = np.nan
    return Tokens(
        ids=generator.integers(0, 300, size),
        next_ids=generator.integers(0, 300, size),
        sources=generator.integers(0, 2, size),
        rows=np.arange(size) // SEQ_LEN,
        positions=np.arange(size) % SEQ_LEN,
        depths=depths,
        gates=gates,
        nll=generator.random(size, dtype=np.float32),
        source_names=["a", "b"],
        max_passes=3,
    )


@given(st.integers(1, 300), st.integers(0, 99))
def test_every_token_is_in_one_group_of_each_kind(size, seed):
    tokens = tokens_of(size, seed)
    kinds = np.arange(300) % len(KINDS)
    for groups in (
        by_source(tokens),
        by_position(tokens, SEQ_LEN),
        by_frequency(tokens),
        by_kind(tokens, KINDS, kinds),
        by_depth(tokens),
    ):
        assert sum(group.tokens for group in groups) == size
        assert all(sum(group.by_depth) == group.tokens for group in groups)
        mean = sum(group.mean_depth * group.tokens for group in groups) / size
        assert mean == pytest.approx(tokens.depths.mean())
        loss = sum(group.loss * group.tokens for group in groups) / size
        assert loss == pytest.approx(tokens.nll.mean(dtype=np.float64))


def test_groups_are_what_they_are_called():
    tokens = tokens_of(4000, 1)
    assert [group.name for group in by_depth(tokens)] == ["1", "2", "3"]
    assert all(group.mean_depth == int(group.name) for group in by_depth(tokens))
    positions = by_position(tokens, SEQ_LEN)
    assert len(positions) == 16
    assert positions[0].name == "0 to 1"
    assert positions[-1].name == "37 to 39"
    counts = np.bincount(tokens.ids)
    top = by_frequency(tokens)[0]
    assert top.name == "1 to 10"
    assert top.tokens == np.sort(counts)[-10:].sum()


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (" word", "word start"),
        ("ing", "inside a word"),
        (" 12", "number"),
        (",", "punctuation"),
        ("\n\n", "space"),
        ("", "space"),
        ("\N{REPLACEMENT CHARACTER}", "part of a character"),
        ("日本", "inside a word"),
        ("\t{", "punctuation"),
    ],
)
def test_kinds_of_tokens(text, kind):
    assert kind_of(text) == kind
