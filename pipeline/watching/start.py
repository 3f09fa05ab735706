"""From a recipe to a watcher at work."""

from __future__ import annotations

import shutil
from pathlib import Path

from launch.targets import kubernetes, slurm
from launch.targets.launching import Launch
from pipeline.console import print_between
from pipeline.durable import write_new
from pipeline.errors import UserError
from pipeline.evaluation.check import check_evaluation, check_validation_rows
from pipeline.recipe import Recipe
from pipeline.run_folder import RunFolder, resolved_text
from pipeline.watching.attempt import Place
from pipeline.watching.cluster import KubernetesPlace, SlurmPlace
from pipeline.watching.local import LocalPlace
from pipeline.watching.stop_flag import StopFlag
from pipeline.watching.watcher import Watcher


def watch(recipe: Recipe, folder: RunFolder, *, once: bool = False, retry: bool = False) -> None:
    """Judge the run's checkpoints as they appear, by the recipe's evaluate section, until the last is judged.

    once: judge what is there and end. retry: try again what was given up. Raises `UserError` before anything is judged,
    `WorldError` at the end naming what was given up, `Stopped` when asked to stop.
    """
    launch = check_watch(recipe, folder)
    stop = StopFlag()
    with stop.listening():
        recipe_file = keep_recipe(recipe, folder)
        how = "once" if once else f"until step {recipe.train.steps:,} is judged"
        print_between(
            f"watch: {folder.checkpoints}, {how}; judged by: {launch.target}; jobs in {folder.evaluation_jobs}"
        )
        Watcher(recipe, folder, _place(launch, recipe_file), once=once, retry=retry).watch(stop)


def check_watch(recipe: Recipe, folder: RunFolder) -> Launch:
    """`UserError` for what no watcher on this machine could do by the recipe; else what its jobs are made from."""
    check_evaluation(recipe, folder)
    check_validation_rows(folder)
    where = recipe.evaluate.jobs.where
    launch = Launch(where, recipe, folder, "evaluate")
    if where == "slurm":
        slurm.check(launch, submit=False)
        _require("sbatch", where)
    elif where == "kubernetes":
        kubernetes.check(launch, submit=False)
        _require("kubectl", where)
    return launch


def keep_recipe(recipe: Recipe, folder: RunFolder) -> Path:
    """What the judging processes read: the operator's file may change while this watches."""
    path = folder.evaluation_jobs / f"recipe-{recipe.hash()[:12]}.yaml"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_new(path, resolved_text(recipe))  # watchers that start together all write it
    return path


def _place(launch: Launch, recipe_file: Path) -> Place:
    poll_seconds = launch.recipe.evaluate.jobs.poll_seconds
    if launch.target == "slurm":
        return SlurmPlace(launch, recipe_file, poll_seconds)
    if launch.target == "kubernetes":
        return KubernetesPlace(launch, recipe_file, poll_seconds)
    return LocalPlace(launch, recipe_file)


def _require(program: str, where: str) -> None:
    if shutil.which(program) is None:
        raise UserError(f"evaluate.jobs.where {where}: {program} is not on PATH here")
