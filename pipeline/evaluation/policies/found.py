"""What the suite `policies` finds."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from pipeline.evaluation.identity import Identity


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PolicyPoint(_Entry):
    """A policy at one amount of compute."""

    policy: str
    """learned, uniform, constant ratio, geometric Q, or truncated: every token at one depth."""
    threshold: float | None
    """tau of the learned policy."""
    at_equal_compute: bool
    """Whether it spends what the learned policy spends with the network's own tau; these are compared."""
    mean_depth: float
    """Passes a token that were really run."""
    active_shares: list[float]
    """Share of the tokens that are active in pass 1, 2, ..., K."""
    multiply_accumulates: float
    """A token, head, mixtures and gates included (method section 7)."""
    loss: float
    """Nats a token."""
    interval: tuple[float, float]
    """95 % of the losses of documents drawn again."""
    over_learned: float | None
    """Loss above the learned policy's at equal compute; None elsewhere."""
    over_learned_interval: tuple[float, float] | None
    """95 % of that difference, on the same draws."""


class Policies(_Entry):
    """The content of metrics.json."""

    schema_version: Literal[1] = 1
    identity: Identity
    max_passes: int
    halt_threshold: float
    tokens: int
    documents: int
    draws: int
    points: list[PolicyPoint]
    seconds: float
    device: str
