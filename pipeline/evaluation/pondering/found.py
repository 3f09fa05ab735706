"""What the suite `depth` finds."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from pipeline.evaluation.identity import Identity
from pipeline.evaluation.pondering.groups import Group


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GateHistogram(_Entry):
    """The gate values after one pass, of the tokens that were active in it."""

    after_pass: int
    tokens: int
    edges: list[float]
    """Of the bins: the first from 0, the last to 1."""
    counts: list[int]
    mean: float


class Pondering(_Entry):
    """The content of metrics.json."""

    schema_version: Literal[1] = 1
    identity: Identity
    max_passes: int
    halt_threshold: float
    tokens: int
    mean_depth: float
    active_shares: list[float]
    """Share of the tokens that take part in pass 1, ..., K."""
    multiply_accumulates: dict[str, float]
    """A token, by part, halted tokens skipped (method section 7)."""
    full_depth_multiply_accumulates: dict[str, float]
    """The same with every pass over every token."""
    depth_and_loss: float | None
    """Spearman's rank correlation of a token's depth with its loss; None where all have one depth."""
    by_depth: list[Group]
    by_source: list[Group]
    by_position: list[Group]
    by_frequency: list[Group]
    by_kind: list[Group]
    gates: list[GateHistogram]
    seconds: float
    device: str
