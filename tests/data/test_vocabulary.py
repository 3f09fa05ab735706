"""Tokens that the network has no embedding for are refused before anything starts."""

from __future__ import annotations

import pytest

from pipeline.data.vocabulary import check_vocabulary
from pipeline.errors import UserError
from tests.data.random_shards import VOCABULARY, MakeShards


def test_a_vocabulary_may_be_padded_but_not_cut(make_shards: MakeShards) -> None:
    manifest = make_shards(tokens=100)[1]
    check_vocabulary(manifest, VOCABULARY)
    check_vocabulary(manifest, VOCABULARY + 27)
    with pytest.raises(UserError, match=f"{VOCABULARY} entries, the backbone's vocab_size is {VOCABULARY - 1}"):
        check_vocabulary(manifest, VOCABULARY - 1)
