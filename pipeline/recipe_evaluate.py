"""The recipe's evaluate section: how checkpoints are judged (`pipeline.evaluation`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.recipe_section import NonNegativeInt, PositiveFloat, PositiveInt, Section

SuiteName = Literal["validation", "windows", "depth", "policies", "tasks", "speed"]

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


class WindowsSection(Section):
    """The suite `windows`: loss over windows that overlap."""

    rows_per_source: PositiveInt | Literal["all"] = "all"
    """Validation rows a source; the first ones."""
    batch_rows: PositiveInt = 8
    overlap: NonNegativeInt | Literal["half"] = "half"
    """Tokens of a window that the one before has predicted: at least so many stand before every token that counts; 0:
    none, but tokens at the ends of rows count, too."""


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


class SpeedSection(Section):
    """The suite `speed`: prefill and decoding with tokens halting and at full depth, on this machine."""

    rows: PositiveInt = 4
    """Read and continued together."""
    prompt_tokens: PositiveInt = 512
    """Of each row; a row of the shards at most."""
    new_tokens: PositiveInt = 32
    rounds: Annotated[int, Field(ge=3)] = 7
    """Of both ways in turn."""


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


class BaselineSection(Section):
    """Another checkpoint, evaluated before, that the run's report and a release's card set beside its own."""

    name: Annotated[str, Field(min_length=1, max_length=60)]
    """What report and card call it."""
    run: Annotated[str, Field(min_length=1)]
    """The run's name in the folder of all runs, or its folder."""
    checkpoint: Annotated[str, Field(pattern=r"^(latest|best|step-\d{8})$")] = "latest"
    """step-00001000; latest: the newest that was evaluated; best: that of the lowest validation loss."""


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
    """Start of the text that a checkpoint's report shows, and `adaponder run` at its end."""
    sample_tokens: NonNegativeInt = 64
    baselines: list[BaselineSection] = []
    """What the run's report (`adaponder report`) and the model card of a release compare with."""
    windows: WindowsSection = WindowsSection()
    depth: DepthSection = DepthSection()
    policies: PoliciesSection = PoliciesSection()
    tasks: EvaluateTasksSection = EvaluateTasksSection()
    speed: SpeedSection = SpeedSection()
    jobs: JobsSection = JobsSection()

    @property
    def all_suites(self) -> list[str]:
        """Every suite that is named for any checkpoint."""
        return list(dict.fromkeys([*self.suites, *self.full_suites]))

    @model_validator(mode="after")
    def _baselines_are_told_apart(self) -> EvaluateSection:
        names = [baseline.name for baseline in self.baselines]
        if len(set(names)) < len(names):
            raise ValueError("baselines: two have one name; the report tells them apart by it")
        return self
