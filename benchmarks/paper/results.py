"""What came out of a study, by member and seed: numbers of the suites' metrics.json and of the training's own lines."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.paper.study import Study, Training
from pipeline.checkpoint import checkpoint_name
from pipeline.evaluation.metrics import Measured, Metrics
from pipeline.evaluation.policies.found import Policies
from pipeline.model.flops import mean_keys, training_work, work_factor
from pipeline.network_config import model_config
from pipeline.recipe import Recipe
from pipeline.run_folder import RunFolder


@dataclass(frozen=True)
class Result:
    """One member under one seed."""

    training: Training
    recipe: Recipe
    found: Measured
    """Of the last checkpoint, on the validation rows."""
    at_start: Measured | None
    """Of the weights before the first step, where they were judged."""
    policies: Policies | None
    lines: list[dict[str, float]]
    """metrics.jsonl."""
    inference_work: float
    """Multiply-accumulates a token, halted tokens skipped, over those of the backbone run once."""
    training_work: float
    """Multiply-accumulates of all its steps, those of a shared first phase included."""

    @property
    def loss(self) -> float:
        return self.found.loss

    @property
    def mean_depth(self) -> float:
        return self.found.mean_depth

    @property
    def depths(self) -> list[int]:
        """Tokens at depth 1, ..., K."""
        return [entry.tokens for entry in self.found.by_depth]


class Results:
    """Of a whole study."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.seeds = list(study.seeds)
        self._results = {
            (training.member.name, training.seed): read_result(study, training) for training in study.trainings
        }

    def __contains__(self, member: str) -> bool:
        return any(name == member for name, _ in self._results)

    def of(self, member: str) -> list[Result]:
        """By seed, in their order."""
        return [self._results[member, seed] for seed in self.seeds]

    def each(self, member: str, read: Callable[[Result], float]) -> list[float]:
        """A number of every seed."""
        return [read(result) for result in self.of(member)]

    def above(self, member: str, other: str) -> list[float]:
        """Loss above another member's, seed by seed."""
        return [one.loss - two.loss for one, two in zip(self.of(member), self.of(other), strict=True)]


def read_result(study: Study, training: Training) -> Result:
    recipe = study.recipe_of(training)
    folder = RunFolder(study.root, recipe)
    last = checkpoint_name(recipe.train.steps)
    found = _metrics(folder.evaluation(last, "validation"))
    start = folder.evaluation(checkpoint_name(0), "validation")
    policies = folder.evaluation(last, "policies") / "metrics.json"
    config = model_config(recipe)
    keys = mean_keys(recipe.tokenize.seq_len)
    depths = [entry.tokens for entry in found.by_depth]
    work = sum(
        phase.steps * training_work(config, keys, frozen_backbone=phase.train == "gates").model.total
        for phase in recipe.train.phases
    )
    return Result(
        training=training,
        recipe=recipe,
        found=found,
        at_start=_metrics(start) if training.member.judged_at_start else None,
        policies=Policies.model_validate_json(policies.read_bytes()) if policies.is_file() else None,
        lines=[json.loads(line) for line in folder.metrics_file.read_text(encoding="utf-8").splitlines()],
        inference_work=work_factor(config, keys, depths),
        training_work=work * recipe.tokens_per_step,
    )


def _metrics(folder: Path) -> Measured:
    return Metrics.model_validate_json((folder / "metrics.json").read_bytes()).overall


def held_depths(result: Result) -> list[float]:
    """Mean depths of the training's tokens, by logged step, over the last quarter of all steps."""
    steps = result.recipe.train.steps
    return [line["depth/mean"] for line in result.lines if "depth/mean" in line and line["step"] > 0.75 * steps]


def spread(values: Sequence[float], digits: int = 4, sign: str = "") -> str:
    """Mean and standard deviation over seeds in words; the mean alone for a single seed."""
    mean = f"{statistics.fmean(values):{sign}.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def as_data(results: Results) -> list[dict[str, Any]]:
    """Every number that the report is made from, for machines."""
    found = []
    for training in results.study.trainings:
        result = next(each for each in results.of(training.member.name) if each.training.seed == training.seed)
        found.append(
            {
                "member": training.member.name,
                "title": training.member.title,
                "seed": training.seed,
                "validation": result.found.model_dump(mode="json"),
                "validation_at_start": result.at_start and result.at_start.model_dump(mode="json"),
                "inference_work_over_one_pass": result.inference_work,
                "training_multiply_accumulates": result.training_work,
                "equal_compute": {
                    point.policy: {"mean_depth": point.mean_depth, "loss": point.loss}
                    for point in (result.policies.points if result.policies else [])
                    if point.at_equal_compute
                },
            }
        )
    return found
