"""The suite `tasks`: accuracy on the harness's tasks, and how deep the network thought about each."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pipeline.console import console
from pipeline.errors import UserError
from pipeline.evaluation.harness.answering import Answerer, Ranks
from pipeline.evaluation.harness.catalogue import Catalogue, included_content
from pipeline.evaluation.harness.files import write_results
from pipeline.evaluation.harness.language_model import language_model_class
from pipeline.evaluation.harness.package import harness_version
from pipeline.evaluation.harness.rounds import run_round
from pipeline.evaluation.identity import Identity
from pipeline.evaluation.subject import Subject
from pipeline.evaluation.suite import Suite
from pipeline.evaluation.task_metrics import STDERR, TaskFound, TaskMetrics, averages, found_in
from pipeline.evaluation.task_plot import write_task_plot
from pipeline.recipe import Recipe

TASKS = "tasks"


class Tasks(Suite):
    """In fp32 with the training's master weights; halted tokens are skipped where the network allows that."""

    name = TASKS
    found = TaskMetrics

    def settings(self, recipe: Recipe) -> dict[str, Any]:
        section = recipe.evaluate.tasks
        return {
            "names": section.names,
            "num_fewshot": section.num_fewshot,
            "limit": section.limit,
            "included": included_content(section.include_path),
            "lm_eval": harness_version(),
        }

    def judge(self, subject: Subject, identity: Identity, output: Path) -> TaskMetrics:
        began = time.monotonic()
        section = subject.recipe.evaluate.tasks
        catalogue = Catalogue(section.names, section.include_path)
        rounds = {shots: catalogue.load(section.names, shots) for shots in sorted(set(section.num_fewshot))}
        if not any(rounds.values()):
            raise UserError("evaluate.tasks: the tasks fix their number of examples at 0: add 0 to num_fewshot")
        config = subject.model.config
        # A network that is not saved is on this rank only.
        ranks = Ranks(
            Answerer(subject.model, subject.tokenizer), None if subject.network is not None else subject.checkpoint.name
        )
        tasks: list[TaskFound] = []
        for shots, loaded in rounds.items():
            if loaded:
                tasks += _judge_round(subject, ranks, catalogue, loaded, shots, output)
        metrics = TaskMetrics(
            identity=identity,
            max_passes=config.max_passes,
            halting=config.halting,
            tasks=tasks,
            averages=averages(tasks),
            seconds=round(time.monotonic() - began, 3),
            device=subject.device_name,
        )
        write_task_plot(output, metrics)
        return metrics

    def named(self, found: TaskMetrics, subject: Subject) -> dict[str, float]:
        return found.flat()

    def tables(self, found: TaskMetrics) -> list[Table]:
        return [_table(found)]


def _judge_round(
    subject: Subject, ranks: Ranks, catalogue: Catalogue, loaded: list[Any], shots: int, output: Path
) -> list[TaskFound]:
    section, config = subject.recipe.evaluate.tasks, subject.model.config
    facts = {
        "checkpoint": subject.checkpoint.name,
        "max_passes": config.max_passes,
        "halting": config.halting,
        "model_num_parameters": sum(weight.numel() for weight in subject.model.parameters()),
        "model_dtype": str(subject.model.dtype),
    }
    with _progress() as progress:
        bar = progress.add_task(f"{shots}-shot", total=None)
        model = language_model_class()(
            ranks,
            subject.tokenizer,
            section.batch_rows,
            config.max_tokens,
            facts,
            lambda done, total: progress.update(bar, completed=done, total=total),
        )
        results, samples = run_round(model, catalogue, loaded, section.batch_rows, section.limit)
    write_results(output, shots, results, samples)
    return found_in(results, model.depths, shots)


def _progress() -> Progress:
    columns = TextColumn("evaluate: {task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("texts")
    return Progress(*columns, TimeRemainingColumn(), console=console, transient=True)


def _table(metrics: TaskMetrics) -> Table:
    identity = metrics.identity
    table = Table(title=f"{identity.suite}, {identity.checkpoint}", title_justify="left")
    table.add_column("task", overflow="fold")
    for name in ("shots", "examples"):
        table.add_column(name, justify="right")
    table.add_column("metric", overflow="fold")
    for name in ("value", "error", "depth"):
        table.add_column(name, justify="right", no_wrap=True)
    for found in sorted(metrics.tasks, key=lambda found: (found.task, found.shots)):
        head, depth = (found.task, str(found.shots), f"{found.examples:,}"), f"{found.mean_depth:.3f}"
        for name, value in found.metrics.items():
            if name.endswith(STDERR):
                continue
            error = found.metrics.get(name + STDERR)
            table.add_row(*head, name, _number(value), "" if error is None else _number(error), depth)
            head, depth = ("", "", ""), ""
    table.add_section()
    for shots, of_all in metrics.averages.items():
        if "acc" in of_all:
            numbers = (_number(of_all["acc"]), "", f"{of_all['mean_depth']:.3f}")
            table.add_row("average", shots.removesuffix("shot"), "", "acc", *numbers)
    return table


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.3g}"
