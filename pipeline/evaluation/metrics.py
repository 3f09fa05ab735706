"""What the suite `validation` finds: numbers overall and by source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict

from pipeline.data.manifest import SourceCount
from pipeline.evaluation.depth import DepthSums
from pipeline.evaluation.identity import Identity
from pipeline.evaluation.perplexity import bits_per_byte, perplexity


class _Entry(BaseModel):
    # A perplexity beyond a double's range stands as Infinity, which Python's JSON reads back.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


class DepthEntry(_Entry):
    depth: int
    """Passes, 1..K."""
    tokens: int
    loss: float | None
    """Nats a token; null where no token has this depth."""


class Measured(_Entry):
    """Numbers of one source, or of all."""

    rows: int
    tokens: int
    """Predicted tokens; padding is none."""
    loss: float
    """Nats a token."""
    standard_error: float | None = None
    """Of the loss, documents being what was drawn; None for a single document."""
    perplexity: float
    bits_per_byte: float
    mean_depth: float
    """Passes a token, 1..K."""
    halted_share: list[float]
    """Share of the tokens halted when pass 1, ..., K-1 is over."""
    by_depth: list[DepthEntry]


class Metrics(_Entry):
    """The content of metrics.json."""

    schema_version: Literal[2] = 2
    identity: Identity
    max_passes: int
    halting: str
    """The network's own setting: none (no token halts), masked, or skip, which gives what masked gives."""
    overall: Measured
    sources: dict[str, Measured]
    seconds: float
    device: str

    def flat(self, keys: Mapping[str, str]) -> dict[str, float]:
        """Numbers by name, for MLflow: loss, depth_2/loss, source/KEY/perplexity, ...

        keys: a distinct name for every source, of letters, digits, "_" and "-" only: all that any store takes.
        """
        named = _flat(self.overall)
        for source, measured in self.sources.items():
            named.update({f"source/{keys[source]}/{name}": value for name, value in _flat(measured).items()})
        return named


def measured(sums: DepthSums, rows: int, text_bytes: float, standard_error: float | None = None) -> Measured:
    """All numbers of one group of rows; `text_bytes` is what its predicted tokens stand for."""
    loss = sums.loss
    pairs = zip(sums.tokens.tolist(), sums.loss_by_depth, strict=True)
    return Measured(
        rows=rows,
        tokens=sums.total_tokens,
        loss=loss,
        standard_error=standard_error,
        perplexity=perplexity(loss),
        bits_per_byte=bits_per_byte(loss, sums.total_tokens, text_bytes),
        mean_depth=sums.mean_depth,
        halted_share=sums.halted_share,
        by_depth=[DepthEntry(depth=depth, tokens=n, loss=at) for depth, (n, at) in enumerate(pairs, start=1)],
    )


def bytes_of(tokens: int, count: SourceCount) -> float:
    """Bytes of text that `tokens` predicted tokens of a source stand for, by its documents' ratio."""
    return tokens * (count.text_bytes / count.tokens)


def _flat(measured: Measured) -> dict[str, float]:
    named = {
        name: float(getattr(measured, name)) for name in ("loss", "perplexity", "bits_per_byte", "mean_depth", "tokens")
    }
    if measured.standard_error is not None:
        named["loss_standard_error"] = measured.standard_error
    for number, share in enumerate(measured.halted_share, start=1):
        named[f"halted_share/pass_{number}"] = share
    for entry in measured.by_depth:
        named[f"depth_{entry.depth}/tokens"] = float(entry.tokens)
        if entry.loss is not None:
            named[f"depth_{entry.depth}/loss"] = entry.loss
    return named
