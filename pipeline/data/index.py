"""The .idx beside each shard, in the format of DALI's wds2idx: where each chunk's members lie in the tar.

First line "v1.2 SAMPLES"; then a line a sample: "EXTENSION OFFSET SIZE NAME" for each of its members, separated by
spaces. Read into arrays, it takes 32 bytes a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import WorldError

INDEX_VERSION = "v1.2"
TOKENS_EXTENSION = "tokens.npy"
META_EXTENSION = "meta.json"


@dataclass(frozen=True)
class ShardIndex:
    """Offsets and sizes in bytes of a shard's members, int64 [chunks]."""

    tokens_offset: np.ndarray
    tokens_bytes: np.ndarray
    meta_offset: np.ndarray
    meta_bytes: np.ndarray


def read_index(path: Path | str, content: bytes) -> ShardIndex:
    """Parse `content`, what stands in the file or at the URL `path`; `WorldError` naming it where it is no index."""
    try:
        first, *lines = content.decode("utf-8").splitlines()
        version, samples = first.split(" ")
        if version != INDEX_VERSION or int(samples) != len(lines):
            raise ValueError(f"{first!r} stands above {len(lines)} samples")
        columns = np.empty((4, len(lines)), dtype=np.int64)
        for number, line in enumerate(lines):
            fields = line.split(" ")
            members = {
                extension: (offset, size)
                for extension, offset, size in zip(fields[0::4], fields[1::4], fields[2::4], strict=True)
            }
            columns[:, number] = *map(int, members[TOKENS_EXTENSION]), *map(int, members[META_EXTENSION])
    except (ValueError, KeyError) as error:
        raise WorldError(f"{path} is not a {INDEX_VERSION} index of tokens and meta ({error}): restore it") from error
    return ShardIndex(*columns)
