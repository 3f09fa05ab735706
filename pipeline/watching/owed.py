"""What a checkpoint is still owed, by its results on disk and by the tries that failed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.checkpoint import open_checkpoint, step_of
from pipeline.errors import WorldError
from pipeline.evaluation.standing import Standing, standing
from pipeline.evaluation.suites import suite_named
from pipeline.recipe import Recipe
from pipeline.run_folder import RunFolder
from pipeline.watching.job import Job, State, SuiteJob
from pipeline.watching.schedule import owed_suites


@dataclass
class Owed:
    """A complete checkpoint, and how far each suite that it is owed has come."""

    path: Path
    save_id: str
    """Empty for a checkpoint that cannot be read."""
    standings: dict[str, Standing] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.path.name

    def new_job(self) -> Job:
        return Job(checkpoint=self.name, save_id=self.save_id, suites={suite: SuiteJob() for suite in self.standings})

    def settled_in(self, job: Job) -> bool:
        """Whether the job says what is, and nothing is left to be judged or told."""
        return job.save_id == self.save_id and all(
            suite in job.suites and _settled(where, job.suites[suite].state) for suite, where in self.standings.items()
        )


class Ledger:
    """Looks at a run's checkpoints with one recipe's eyes."""

    def __init__(self, recipe: Recipe, folder: RunFolder) -> None:
        self._recipe, self._folder = recipe, folder
        self._settings: dict[str, dict[str, Any]] = {
            suite: suite_named(suite).settings(recipe) for suite in recipe.evaluate.all_suites
        }

    def look(self, path: Path) -> Owed:
        """At the complete checkpoint in that folder."""
        try:
            save_id = open_checkpoint(path).state.save_id
        except WorldError:  # judging it will fail, and tell why
            save_id = ""
        return self._owed(path, save_id)

    def recall(self, job: Job) -> Owed:
        """What became of a checkpoint that is no more."""
        return self._owed(self._folder.checkpoints / job.checkpoint, job.save_id)

    def _owed(self, path: Path, save_id: str) -> Owed:
        suites = owed_suites(self._recipe, step_of(path))
        return Owed(path, save_id, {suite: self._standing(path.name, save_id, suite) for suite in suites})

    def _standing(self, name: str, save_id: str, suite: str) -> Standing:
        return standing(self._folder.evaluation(name, suite), save_id, self._settings[suite])

    def bring_up_to_date(self, owed: Owed, job: Job | None, *, forgive: bool = False) -> Job:
        """The job as the results on disk and the recipe say; forgive: what was given up gets all its tries anew."""
        old = job if job is not None and job.save_id == owed.save_id else owed.new_job()
        suites = {}
        for suite, where in owed.standings.items():
            one = old.suites.get(suite, SuiteJob())
            if where is Standing.DONE:
                one = SuiteJob(state=State.DONE, tries=one.tries)
            elif where is Standing.UNTOLD:
                one = SuiteJob(state=State.UNTOLD, tries=one.tries)
            elif one.tries >= self._recipe.evaluate.jobs.tries and not forgive:
                one = one.model_copy(update={"state": State.FAILED})
            else:
                one = SuiteJob(tries=0 if forgive and one.state is State.FAILED else one.tries, error=one.error)
            suites[suite] = one
        return old.model_copy(update={"suites": suites})


def waiting(job: Job) -> list[str]:
    """The suites to judge: one that has failed goes after the others, so that it holds up none of them."""
    found = [suite for suite, one in job.suites.items() if one.state is State.WAITING]
    return sorted(found, key=lambda suite: job.suites[suite].tries)


def untold(job: Job) -> list[str]:
    return [suite for suite, one in job.suites.items() if one.state is State.UNTOLD]


def _settled(where: Standing, state: State) -> bool:
    return (where is Standing.DONE and state is State.DONE) or (where is Standing.MISSING and state is State.FAILED)
