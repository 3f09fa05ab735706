"""The recipe's evaluate section: how checkpoints are judged (`pipeline.evaluation`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.recipe_section import NonNegativeInt, PositiveFloat, PositiveInt, Section

SuiteName = Literal["validation", "depth", "policies"]


class DepthSection(Section):
    """The suite `depth`: on which tokens the passes are spent."""

    rows_per_source: PositiveInt | Literal["all"] = 256
    """Validation rows a source; the first ones. Every token of them is held in memory, some 60 bytes each."""
    batch_rows: PositiveInt = 8


class PoliciesSection(Section):
    """The suite `policies`: learned halting against fixed shares of the tokens, on one network."""

    rows_per_source: PositiveInt | Literal["all"] = 64
    """Validation rows a source; the first ones. Every row is run some hundred times."""
    batch_rows: PositiveInt = 8
    geometric_ratios: list[Annotated[float, Field(gt=0.0, lt=1.0)]] = [0.1, 0.3, 0.5, 0.7, 0.9]
    """Geometric policies: each pass keeps this share of the tokens that the pass before had."""
    thresholds: list[Annotated[float, Field(ge=0.0, lt=1.0)]] = [1e-5, 1e-3, 1e-2, 0.1, 0.3, 0.5, 0.7, 0.9]
    """tau of the further points on the learned policy's curve."""
    mean_depths: list[Annotated[float, Field(ge=1.0)]] = [1.5, 2.0, 2.5, 3.0, 3.5]
    """Passes a token of the further points on the fixed policies' curves."""
    draws: PositiveInt = 1000
    """Of the bootstrap over documents."""


class JobsSection(Section):
    """How `adaponder watch` has checkpoints judged as they appear."""

    where: Literal["local", "slurm", "kubernetes"] = "local"
    """local: as a child process of the watcher, one at a time; slurm, kubernetes: as jobs of their own, with what the
    cluster section says of evaluation."""
    tries: PositiveInt = 3
    """How often a suite may fail on a checkpoint before it is given up and told."""
    poll_seconds: PositiveFloat = 30.0
    """How often the watcher looks for checkpoints and for the ends of jobs."""


class EvaluateSection(Section):
    """How a checkpoint is judged."""

    suites: Annotated[list[SuiteName], Field(min_length=1)] = ["validation"]
    """What every checkpoint is judged by: `adaponder evaluate` without --suite."""
    full_suites: list[SuiteName] = []
    """What `adaponder watch` judges besides, at every full_every-th checkpoint and the last one."""
    full_every: NonNegativeInt = 0
    """Of the saves that the recipe plans (train.checkpoint_every_steps and ends of phases), in their order; 0: only the
    last one."""
    rows_per_source: PositiveInt | Literal["all"] = "all"
    """Validation rows a source; the first ones."""
    batch_rows: PositiveInt = 8
    sample_prompt: str = "The "
    """Start of the text that `adaponder run` generates at its end."""
    sample_tokens: NonNegativeInt = 64
    depth: DepthSection = DepthSection()
    policies: PoliciesSection = PoliciesSection()
    jobs: JobsSection = JobsSection()
