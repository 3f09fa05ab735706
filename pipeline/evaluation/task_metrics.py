"""What the suite `tasks` finds: numbers by task and by the number of examples before a question."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import fmean
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from pipeline.durable import sha256_json
from pipeline.evaluation.harness.catalogue import AVERAGE
from pipeline.evaluation.harness.depths import TaskDepth
from pipeline.evaluation.identity import Identity

STDERR = "_stderr"
ACCURACIES = ("acc", "exact_match")
"""Shares of right answers, in the order in which one is taken for a task's figure."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


class TaskDocuments(_Entry):
    """The documents that a task asked about."""

    sha256: str
    """Of their own hashes, in their order."""
    path: str
    """The data set's name for the library `datasets`: of the hub, or a kind of file such as json."""
    name: str | None
    """Which of the data set's configurations."""
    split: str | None
    files: bool
    """Whether it was made from files that the task names."""


class TaskFound(_Entry):
    """One task with one number of examples."""

    task: str
    shots: int
    examples: int
    metrics: dict[str, float]
    """The harness's, with their standard errors as NAME_stderr; NAME_FILTER where a filter came before."""
    mean_depth: float
    """Passes behind a scored or written token: of the last token read before it."""
    mean_depth_read: float
    """Passes of a token that was read, contexts included."""
    scored_tokens: int
    read_tokens: int
    documents: TaskDocuments | None = None
    """Null in results from before they were noted."""

    @property
    def accuracy(self) -> str | None:
        """The metric that is the share of right answers; None where the task has none."""
        names = sorted(name for name in self.metrics if not name.endswith(STDERR))
        for wanted in ACCURACIES:
            for name in names:  # the plain name comes before those with a filter's
                if name == wanted or name.startswith(f"{wanted}_"):
                    return name
        return None


class TaskMetrics(_Entry):
    """The content of metrics.json."""

    schema_version: Literal[1] = 1
    identity: Identity
    max_passes: int
    halting: str
    """The network's own setting; halted tokens were skipped where it allows that, which changes no result."""
    tasks: list[TaskFound]
    averages: dict[str, dict[str, float]]
    """By the number of examples, as "5shot": the plain mean over the tasks of acc and mean_depth."""
    seconds: float
    device: str

    def flat(self) -> dict[str, float]:
        """Numbers by name, for MLflow: sciq/0shot/acc, sciq/0shot/mean_depth, average/0shot/acc, ..."""
        named: dict[str, float] = {}
        for found in self.tasks:
            of_task = {**found.metrics, "mean_depth": found.mean_depth, "mean_depth_read": found.mean_depth_read}
            named.update({f"{found.task}/{found.shots}shot/{name}": value for name, value in of_task.items()})
        for shots, of_all in self.averages.items():
            named.update({f"{AVERAGE}/{shots}/{name}": value for name, value in of_all.items()})
        return {name: value for name, value in named.items() if math.isfinite(value)}


def found_in(
    results: dict[str, Any], samples: dict[str, list[dict[str, Any]]], depths: dict[str, TaskDepth], shots: int
) -> list[TaskFound]:
    """What a round of the harness found, task by task; groups stand in its own results."""
    found = []
    for task, depth in depths.items():
        metrics: dict[str, float] = {}
        for key, value in results["results"][task].items():
            name, _, filtered = key.partition(",")
            if filtered and isinstance(value, int | float):  # where there is no standard error, it says so in words
                metrics[name if filtered == "none" else _filtered(name, filtered)] = float(value)
        found.append(
            TaskFound(
                task=task,
                shots=shots,
                examples=results["n-samples"][task]["effective"],
                metrics=metrics,
                mean_depth=depth.of_targets,
                mean_depth_read=depth.of_all,
                scored_tokens=depth.target_tokens,
                read_tokens=depth.read_tokens,
                documents=_documents(results["configs"][task], samples[task]),
            )
        )
    return found


def _documents(config: dict[str, Any], samples: list[dict[str, Any]]) -> TaskDocuments:
    """config: the task's own file, as the harness read it. A document has a sample for each of the task's filters."""
    hashes = {sample["doc_id"]: sample["doc_hash"] for sample in samples}
    return TaskDocuments(
        sha256=sha256_json([hashes[number] for number in sorted(hashes)]),
        path=str(config.get("dataset_path") or config["task"]),
        name=config.get("dataset_name"),
        split=config.get("test_split") or config.get("validation_split"),
        files="data_files" in (config.get("dataset_kwargs") or {}),
    )


def averages(tasks: Iterable[TaskFound]) -> dict[str, dict[str, float]]:
    """The plain means over the tasks: acc over those that have it, mean depth over all."""
    by_shots: dict[int, list[TaskFound]] = {}
    for found in tasks:
        by_shots.setdefault(found.shots, []).append(found)
    means = {}
    for shots, of_round in by_shots.items():
        accuracies = [found.metrics["acc"] for found in of_round if "acc" in found.metrics]
        mean = {"acc": fmean(accuracies)} if accuracies else {}
        means[f"{shots}shot"] = {**mean, "mean_depth": fmean(found.mean_depth for found in of_round)}
    return means


def _filtered(name: str, filtered: str) -> str:
    base = name.removesuffix(STDERR)
    return f"{base}_{filtered}{name[len(base) :]}"
