"""The train stage as a command: check, choose the ranks, start them, and say in one line what went wrong."""

from __future__ import annotations

from pathlib import Path

from launch.local import run_ranks, threads_per_rank
from pipeline.checkpoint import find_checkpoint
from pipeline.console import console
from pipeline.recipe import Recipe
from pipeline.run_folder import RunFolder, write_resolved_recipe
from pipeline.tracking import sync
from pipeline.training.attempt import ATTEMPT_VARIABLE, launcher_log, next_attempt, raise_first_failure
from pipeline.training.checks import check_training, choose_ranks


def train(recipe: Recipe, folder: RunFolder, resume: str = "auto") -> Path:
    """Train on this machine until the recipe's last step; returns the last checkpoint.

    Continues from the newest complete checkpoint; with all steps taken it says so and starts nothing. Raises
    `UserError` before anything starts, `WorldError` naming rank and host when a rank fails.
    """
    ranks, why = choose_ranks(recipe)
    plan = check_training(recipe, folder, ranks, resume)
    if plan.first_step >= recipe.train.steps and plan.resume_from is not None:
        console.print(f"train: all {recipe.train.steps} steps are taken, nothing to do")
        return plan.resume_from.path
    attempt = next_attempt(folder.logs)
    resolved = folder.logs / f"attempt-{attempt:03d}-recipe.yaml"
    write_resolved_recipe(recipe, resolved)
    threads = threads_per_rank(ranks)
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
        environment={ATTEMPT_VARIABLE: str(attempt), "OMP_NUM_THREADS": str(threads)},
    )
    if exit_code:
        sync(folder)  # a rank that was killed could not tell MLflow
        raise_first_failure(folder.logs, attempt, exit_code)
    return find_checkpoint(folder.checkpoints).path
