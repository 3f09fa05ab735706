"""The recipe's evaluate section: how checkpoints are judged (`pipeline.evaluation`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.recipe_section import NonNegativeInt, PositiveInt, Section

SuiteName = Literal["validation", "tasks"]

PAPERS_TASKS = [
    "lambada_openai",
    "lambada_standard",
    "arc_easy",
    "arc_challenge",
    "winogrande",
    "piqa",
    "hellaswag",
    "sciq",
    "race",
]


class EvaluateTasksSection(Section):
    """The suite `tasks`: EleutherAI's lm-evaluation-harness on the network."""

    names: Annotated[list[str], Field(min_length=1)] = PAPERS_TASKS
    """Tasks, groups and tags of the harness, or of include_path."""
    num_fewshot: Annotated[list[NonNegativeInt], Field(min_length=1)] = [0, 5]
    """Examples before each question; the tasks are judged once with each number."""
    include_path: str | None = None
    """A folder with the YAML of more tasks, found before the harness's own of the same name; on a cluster without
    network their data are files beside them."""
    limit: PositiveInt | None = None
    """The first examples of each task only, for a try."""
    batch_rows: PositiveInt = 16
    """Texts read or written together; changes time and memory only."""


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
    tasks: EvaluateTasksSection = EvaluateTasksSection()
