"""The train stage as a command: check, choose the ranks, start them, and say in one line what went wrong."""

from __future__ import annotations

import os
import time
from pathlib import Path

from rich.markup import escape

from launch.local import run_ranks, threads_per_rank
from pipeline.checkpoint import find_checkpoint
from pipeline.console import console
from pipeline.evaluation.check import check_evaluation
from pipeline.recipe import Recipe
from pipeline.run_folder import RunFolder, write_resolved_recipe
from pipeline.tracking import sync
from pipeline.training.attempt import (
    ATTEMPT_VARIABLE,
    launcher_log,
    next_attempt,
    raise_first_failure,
    reported_stop,
)
from pipeline.training.checks import check_training, choose_ranks
from pipeline.training.fallback import first_damage
from pipeline.training.stopping import BEGAN_VARIABLE, Stopped

THREADS_VARIABLE = "OMP_NUM_THREADS"
"""CPU threads of a rank; what the operator sets counts, as on nodes of a cluster."""


def train(recipe: Recipe, folder: RunFolder, resume: str = "auto") -> Path:
    """Train on this machine until the recipe's last step; returns the last checkpoint.

    Continues from the newest complete checkpoint; with all steps taken it says so and starts nothing. Raises
    `UserError` before anything starts, `WorldError` naming rank and host when a rank fails, `Stopped` when the training
    was asked to stop and has saved. After a guard has rolled back it goes on by itself.
    """
    began = time.time()
    check_evaluation(recipe, folder)
    while True:
        try:
            return _train_once(recipe, folder, resume, began)
        except Stopped as stop:
            if not stop.again:
                raise
            console.print(f"[yellow]{escape(str(stop))}[/yellow]")
            resume = "auto"


def _train_once(recipe: Recipe, folder: RunFolder, resume: str, began: float) -> Path:
    """One attempt; `began` is when the command began to train, seconds since 1970."""
    ranks, why = choose_ranks(recipe)
    plan = check_training(recipe, folder, ranks, resume)
    if plan.first_step >= recipe.train.steps and plan.resume_from is not None:
        damage = first_damage(plan.resume_from, recipe.train.verify_on_resume)
        if damage is None:
            console.print(f"train: all {recipe.train.steps} steps are taken, nothing to do")
            return plan.resume_from.path
        console.print(f"[yellow]{damage}: the ranks look for an older one[/yellow]", highlight=False)
    attempt = next_attempt(folder.logs)
    resolved = folder.logs / f"attempt-{attempt:03d}-recipe.yaml"
    write_resolved_recipe(recipe, resolved)
    threads = os.environ.get(THREADS_VARIABLE) or str(threads_per_rank(ranks))
    start = f"continuing from {plan.resume_from.name}" if plan.resume_from else "from the start"
    console.print(
        f"train: attempt {attempt}, {start}; {ranks} ranks ({why}), {threads} CPU threads each, ZeRO "
        f"{plan.zero_stage}, {recipe.train.precision}; logs in {folder.logs}"
    )
    exit_code = run_ranks(
        "pipeline.training.worker",
        [str(resolved), "--runs", str(folder.root), "--resume", resume],
        ranks=ranks,
        launcher_log=launcher_log(folder.logs, attempt),
        environment={ATTEMPT_VARIABLE: str(attempt), BEGAN_VARIABLE: str(began), THREADS_VARIABLE: threads},
    )
    if stop := reported_stop(folder.logs, attempt):
        sync(folder)
        raise stop
    if exit_code:
        sync(folder)  # a rank that was killed could not tell MLflow
        raise_first_failure(folder.logs, attempt, exit_code)
    return find_checkpoint(folder.checkpoints).path
