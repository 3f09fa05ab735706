"""What a network is asked to do for the harness, a batch at a time, and what it answers: plain data for any rank."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Row:
    """Some text that is read once, and all continuations that are scored on it.

    Several where continuations differ in their last token only: the last token is never read.
    """

    tokens: list[int]
    """What the network reads: context and continuation without its last token, cut from the left."""
    targets: list[list[int]] = field(default_factory=list)
    """Each a continuation: what the last `len(target)` read tokens are to predict."""


@dataclass
class RowScore:
    """What the network says of a `Row`."""

    answers: list[tuple[float, bool]]
    """Of each target: its log likelihood, in nats, and whether greedy decoding would write it."""
    target_depths: list[int]
    """Of each target: the depths, summed, of the tokens that predict it."""
    read_depths: int
    """The depths of all tokens, summed."""


@dataclass
class ScoreBatch:
    """Rows that are read together; of similar length, since the shorter ones are padded."""

    rows: list[Row]


@dataclass
class WriteBatch:
    """Texts that are continued together, all in the same way."""

    contexts: list[list[int]]
    """The tokens of each text, at least one."""
    stops: list[str]
    """A text ends before the first of these in what is written, or with the end-of-text mark."""
    max_new_tokens: int
    arguments: dict[str, Any]
    """Further arguments of transformers' `generate()`."""
    seed: int
    """For sampling; the batch's own, so that it does not matter which rank writes it."""


@dataclass
class Written:
    """A text that the network wrote."""

    tokens: list[int]
    """New tokens, up to the one with which the text ends."""
    new_depths: int
    """The depths, summed, of the tokens that predict the new ones."""
    read_depths: int
    """The depths, summed, of all tokens read: the context's, and the new ones' but for the last."""


Batch = ScoreBatch | WriteBatch
