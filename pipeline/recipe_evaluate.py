"""The recipe's evaluate section: how checkpoints are judged (`pipeline.evaluation`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.recipe_section import NonNegativeInt, PositiveInt, Section

SuiteName = Literal["validation"]


class EvaluateSection(Section):
    """How a checkpoint is judged."""

    suites: Annotated[list[SuiteName], Field(min_length=1)] = ["validation"]
    """What every checkpoint is judged by: `adaponder evaluate` without --suite."""
    rows_per_source: PositiveInt | Literal["all"] = "all"
    """Validation rows a source; the first ones."""
    batch_rows: PositiveInt = 8
    sample_prompt: str = "The "
    """Start of the text that `adaponder run` generates at its end."""
    sample_tokens: NonNegativeInt = 64
