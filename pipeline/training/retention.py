"""Which steps are saved, and which checkpoints stay.

Nothing is removed unless the recipe asks for it: a checkpoint cannot be made again, and evaluations of every one may
still be waiting for their machine.
"""

from __future__ import annotations

from itertools import accumulate

from pipeline.checkpoint import complete_folders, step_of
from pipeline.checkpoint_lock import Removal, remove_unless_read
from pipeline.console import console
from pipeline.events import append_event
from pipeline.recipe_train import TrainSection
from pipeline.run_folder import RunFolder

LAST_LOG_SPACED_STEP = 512
"""Pythia's: 1, 2, 4, ..., 512."""


def saves_at(train: TrainSection, step: int) -> bool:
    """Whether the recipe asks for a checkpoint after `step` steps; ends of phases are saved besides."""
    return step % train.checkpoint_every_steps == 0 or (train.checkpoint_log_spaced and _is_log_spaced(step))


def superfluous(train: TrainSection, steps: list[int]) -> list[int]:
    """Which of the complete checkpoints at `steps` may go, oldest first.

    What stays: the last `keep_last`, every `keep_every_steps`-th, step 0, the ends of phases, and the log-spaced steps
    where they were asked for.
    """
    if train.keep_last == "all":
        return []
    ends = {0, *accumulate(phase.steps for phase in train.phases)}
    return [
        step
        for step in sorted(set(steps))[: -train.keep_last]
        if step not in ends
        and not (train.keep_every_steps and step % train.keep_every_steps == 0)
        and not (train.checkpoint_log_spaced and _is_log_spaced(step))
    ]


def _is_log_spaced(step: int) -> bool:
    return 0 < step <= LAST_LOG_SPACED_STEP and step & (step - 1) == 0


class Retention:
    """Removes a run's superfluous checkpoints after each save; rank 0 alone.

    One that somebody reads is left for the next time. What cannot be removed is told once and stops no training.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._train = folder.recipe.train
        self._told: set[str] = set()

    def __call__(self) -> None:
        paths = {step_of(path): path for path in complete_folders(self._folder.checkpoints)}
        removed = []
        for step in superfluous(self._train, list(paths)):
            name = paths[step].name
            try:
                outcome = remove_unless_read(paths[step])
            except OSError as error:
                self._tell(f"{error.filename or paths[step]} cannot be removed: {error.strerror or error}", name)
                continue
            if outcome is Removal.DONE:
                removed.append(name)
            elif outcome is Removal.READ:
                self._tell(f"{paths[step]} stays for now: {outcome.value}", name)
            else:
                self._tell(f"{self._folder.checkpoints}: no checkpoint is removed: {outcome.value}", name="")
                break
        if removed:
            append_event(self._folder, "checkpoints_removed", checkpoints=removed, keep_last=self._train.keep_last)

    def _tell(self, message: str, name: str) -> None:
        if message in self._told:
            return
        self._told.add(message)
        append_event(self._folder, "checkpoint_not_removed", checkpoint=name, reason=message)
        console.print(f"[yellow]note: {message}[/yellow]", highlight=False)
