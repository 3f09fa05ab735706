"""Tokens in groups, and what each group's depth and loss are."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from pipeline.evaluation.pondering.tokens import Tokens

FREQUENCY_RANKS = (10, 100, 1_000, 10_000)
"""The ten most frequent tokens of what was evaluated, the next ninety, and so on."""
POSITION_GROUPS = 16


class Group(BaseModel):
    """Numbers of some tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    tokens: int
    mean_depth: float
    """Passes a token."""
    loss: float
    """Nats a token."""
    standard_error: float | None
    """Of mean_depth, tokens taken as independent; None for a single one."""
    by_depth: list[int]
    """Tokens at depth 1, ..., K."""


def grouped(tokens: Tokens, names: Sequence[str], place: np.ndarray) -> list[Group]:
    """place: int64 [N], the group of each token by its place in `names`. Groups without a token are left out."""
    found = []
    for number, name in enumerate(names):
        depths, nll = tokens.depths[place == number], tokens.nll[place == number]
        if len(depths):
            found.append(
                Group(
                    name=name,
                    tokens=len(depths),
                    mean_depth=float(depths.mean()),
                    loss=float(nll.mean(dtype=np.float64)),
                    standard_error=float(depths.std(ddof=1) / np.sqrt(len(depths))) if len(depths) > 1 else None,
                    by_depth=np.bincount(depths, minlength=tokens.max_passes + 1)[1:].tolist(),
                )
            )
    return found


def by_source(tokens: Tokens) -> list[Group]:
    return grouped(tokens, tokens.source_names, tokens.sources)


def by_position(tokens: Tokens, seq_len: int) -> list[Group]:
    """Equal stretches of the row."""
    count = min(POSITION_GROUPS, seq_len)
    edges = [number * seq_len // count for number in range(count + 1)]
    names = [f"{first} to {last - 1}" for first, last in itertools.pairwise(edges)]
    return grouped(tokens, names, np.searchsorted(edges, tokens.positions, side="right") - 1)


def by_frequency(tokens: Tokens) -> list[Group]:
    """By the rank of the token's frequency among what was evaluated."""
    counts = np.bincount(tokens.ids)
    ranks = np.empty_like(counts)
    ranks[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    names, before = [], 0
    for limit in FREQUENCY_RANKS:
        names.append(f"{before + 1:,} to {limit:,}")
        before = limit
    names.append(f"beyond {before:,}")
    return grouped(tokens, names, np.searchsorted(FREQUENCY_RANKS, ranks[tokens.ids], side="right"))


def by_kind(tokens: Tokens, kinds: Sequence[str], kind_of_id: np.ndarray) -> list[Group]:
    """kind_of_id: int64 [vocabulary], place in `kinds`."""
    return grouped(tokens, kinds, kind_of_id[tokens.ids])


def by_depth(tokens: Tokens) -> list[Group]:
    """A group for each depth: their loss is figure 5 of the paper."""
    names = [str(depth) for depth in range(1, tokens.max_passes + 1)]
    return grouped(tokens, names, tokens.depths - 1)
