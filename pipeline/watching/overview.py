"""What watchers have in hand and how far they are: read from the folder, nobody is asked."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.checkpoint import checkpoint_name, complete_folders
from pipeline.recipe import Recipe
from pipeline.run_folder import RunFolder
from pipeline.watching.claims import holder_of
from pipeline.watching.job import State, jobs_below


@dataclass
class EvaluationJob:
    """One suite owed to one checkpoint."""

    checkpoint: str
    suite: str
    state: str
    """waiting, running, judged but not in MLflow, done or failed."""
    tries: int
    """Those that failed."""
    error: str | None
    """Of the last try that failed."""
    holder: str | None
    """Host and process of the watcher that has the checkpoint in hand."""
    log: str | None


def evaluation_jobs(folder: RunFolder) -> list[EvaluationJob]:
    """Of all checkpoints that a watcher has seen, oldest first; `WorldError` for a damaged file."""
    found = []
    for job in jobs_below(folder.evaluation_jobs):
        holder = holder_of(folder.evaluation_jobs / job.checkpoint)
        told = None if holder is None else f"{holder.host}, process {holder.pid}"
        for suite, one in job.suites.items():
            # What nobody has in hand waits, though its watcher was killed before it could say so.
            state = State.WAITING if one.state is State.RUNNING and holder is None else one.state
            found.append(EvaluationJob(job.checkpoint, suite, state.value, one.tries, one.error, told, job.log))
    return found


def is_all_settled(recipe: Recipe, folder: RunFolder) -> bool:
    """Whether the last checkpoint is there and no job waits or runs: each is done or given up.

    Raises `WorldError` for a damaged file.
    """
    jobs = {job.checkpoint: job for job in jobs_below(folder.evaluation_jobs)}
    saved = [path.name for path in complete_folders(folder.checkpoints)]
    if checkpoint_name(recipe.train.steps) not in saved or not set(saved) <= set(jobs):
        return False
    states = {one.state for job in jobs.values() for one in job.suites.values()}
    return not states & {State.WAITING, State.RUNNING}
