"""Whether a data set's tokens fit a network: asked where the network is known, before anything starts."""

from __future__ import annotations

from pipeline.data.manifest import Manifest
from pipeline.errors import UserError


def check_vocabulary(manifest: Manifest, vocab_size: int) -> None:
    """`UserError` where the shards may hold token ids that an embedding of `vocab_size` rows does not have."""
    check_entries(manifest.tokenizer.name, manifest.tokenizer.vocab_size, vocab_size)


def check_entries(tokenizer: str, entries: int, vocab_size: int) -> None:
    """`UserError` where a tokenizer of `entries` ids is larger than an embedding of `vocab_size` rows."""
    if entries > vocab_size:
        raise UserError(
            f"the tokenizer of the shards ({tokenizer}) has {entries} entries, the backbone's vocab_size is "
            f"{vocab_size}: take the backbone's own tokenizer or a larger vocab_size"
        )
