"""Whether a data set's tokens fit a network: asked where the network is known, before anything starts."""

from __future__ import annotations

from pipeline.data.manifest import Manifest
from pipeline.errors import UserError


def check_vocabulary(manifest: Manifest, vocab_size: int) -> None:
    """`UserError` where the shards may hold token ids that an embedding of `vocab_size` rows does not have."""
    tokenizer = manifest.tokenizer
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"the tokenizer of the shards ({tokenizer.name}) has {tokenizer.vocab_size} entries, the backbone's "
            f"vocab_size is {vocab_size}: take the backbone's own tokenizer or a larger vocab_size"
        )
