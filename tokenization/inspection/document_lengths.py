"""How long the documents of a data set are, by source, from the pieces in its chunks.

A document may go on over chunks, and where parts of the work were packed apart, its rest stands among the split's last
chunks. So a shard gives what it knows alone, and the shards of a split are joined in their order.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from pipeline.data.manifest import Manifest, ShardEntry, SplitEntry
from pipeline.errors import WorldError
from tokenization.inspection.stored_chunks import StoredShard


@dataclass
class Lengths:
    """Documents by the power of two that their tokens, the end-of-document mark included, lie above."""

    bins: Counter[int] = field(default_factory=Counter)
    """Documents of 2**n to 2**(n + 1) - 1 tokens, by n."""
    tokens: int = 0
    shortest: int = 0
    """In tokens; 0 where there is no document."""
    longest: int = 0

    @property
    def documents(self) -> int:
        return self.bins.total()

    @property
    def mean(self) -> float:
        return self.tokens / self.documents if self.documents else 0.0

    def add(self, tokens: np.ndarray) -> None:
        """Count documents of these lengths, int64 [documents], all above 0."""
        if tokens.size == 0:
            return
        # frexp is exact below 2**53: 2**(exponent - 1) <= tokens < 2**exponent.
        exponents, counts = np.unique(np.frexp(tokens.astype(np.float64))[1], return_counts=True)
        self.bins.update({int(exponent) - 1: int(count) for exponent, count in zip(exponents, counts, strict=True)})
        shortest = int(tokens.min())
        self.shortest = min(self.shortest, shortest) if self.shortest else shortest
        self.longest = max(self.longest, int(tokens.max()))
        self.tokens += int(tokens.sum())

    def join(self, other: Lengths) -> None:
        self.bins.update(other.bins)
        shortest = [length for length in (self.shortest, other.shortest) if length]
        self.shortest = min(shortest, default=0)
        self.longest = max(self.longest, other.longest)
        self.tokens += other.tokens


@dataclass(frozen=True)
class _Part:
    """Part of a document whose other parts stand elsewhere."""

    source: str
    tokens: int
    begins: bool
    ends: bool
    opens_shard: bool
    """Whether it is the first piece of its shard."""
    series: str
    """Of its shard; see `StoredShard.series`."""


@dataclass
class _ShardLengths:
    whole: dict[str, Lengths] = field(default_factory=dict)
    parts: list[_Part] = field(default_factory=list)
    """In the order in which they stand."""


def document_lengths(
    shards: Path, manifest: Manifest, advance: Callable[[int], object] = lambda _: None
) -> dict[str, Lengths]:
    """Lengths of all documents of all splits by source; `advance` is told the shards done.

    Raises `WorldError` naming the file for a shard that is missing or damaged.
    """
    lengths: dict[str, Lengths] = {}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)), "lengths") as executor:
        try:
            for key, split in manifest.splits.items():
                open_parts: list[_Part] = []
                for of_shard in executor.map(lambda entry: _shard_lengths(shards, manifest, entry), split.shards):
                    for source, whole in of_shard.whole.items():
                        lengths.setdefault(source, Lengths()).join(whole)
                    for part in of_shard.parts:
                        _join(open_parts, part, lengths)
                    advance(1)
                _check(shards, key, split, open_parts)
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise
    return dict(sorted(lengths.items()))


def _shard_lengths(shards: Path, manifest: Manifest, entry: ShardEntry) -> _ShardLengths:
    found = _ShardLengths()
    end_of_document = manifest.tokenizer.end_of_document_id
    left: _Part | None = None
    with StoredShard(shards, entry, manifest.seq_len + 1) as shard:
        for chunk in range(shard.chunks):
            pieces = shard.pieces(chunk)
            tokens = pieces.end - pieces.start
            begins = pieces.bytes > 0
            ends = np.ones(len(tokens), dtype=bool)
            ends[-1] = pieces.padding_tokens > 0 or shard.last_token(chunk) == end_of_document
            for place, source in enumerate(pieces.sources):
                whole = (pieces.source == place) & begins & ends
                found.whole.setdefault(source, Lengths()).add(tokens[whole])
            before, left = left, None
            for place in np.flatnonzero(~(begins & ends)).tolist():
                source = pieces.sources[pieces.source[place]]
                part = _Part(
                    source,
                    int(tokens[place]),
                    bool(begins[place]),
                    bool(ends[place]),
                    place == chunk == 0,
                    shard.series,
                )
                if before is not None and place == 0 and before.source == source and not part.begins:
                    # The chunks of a shard follow each other, so this is the rest of the chunk before.
                    part = replace(before, tokens=before.tokens + part.tokens, ends=part.ends)
                elif before is not None:
                    found.parts.append(before)
                before = None
                if part.begins and part.ends:
                    found.whole.setdefault(source, Lengths()).add(np.array([part.tokens]))
                elif part.ends:
                    found.parts.append(part)
                else:
                    left = part
            if before is not None:
                found.parts.append(before)
    if left is not None:
        found.parts.append(left)
    return found


def _join(open_parts: list[_Part], part: _Part, lengths: dict[str, Lengths]) -> None:
    """Put a part to the one that it continues; count the document if it ends there.

    At the beginning of a shard that is what the same writer's shard before left open; anywhere else it is a rest from
    the split's end, where the rests stand in the order of what they continue.
    """
    tokens = part.tokens
    if not part.begins:
        places = [place for place, other in enumerate(open_parts) if other.source == part.source]
        if not places:
            # A document without a byte of text, as a file of tokens may hold one.
            lengths.setdefault(part.source, Lengths()).add(np.array([tokens]))
            return
        same_series = open_parts[places[-1]].series == part.series
        tokens += open_parts.pop(places[-1] if part.opens_shard and same_series else places[0]).tokens
    if part.ends:
        lengths.setdefault(part.source, Lengths()).add(np.array([tokens]))
    else:
        open_parts.append(replace(part, tokens=tokens, begins=True))


def _check(shards: Path, key: str, split: SplitEntry, open_parts: list[_Part]) -> None:
    if open_parts:
        names = ", ".join(sorted({part.source for part in open_parts}))
        where = shards / split.shards[-1].name
        raise WorldError(
            f"{where}: documents of {names} in {key} begin and never end: see `adaponder data verify {shards}`"
        )
