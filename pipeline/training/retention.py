"""Removing the checkpoints that do not stay (`pipeline.kept_checkpoints`).

Nothing is removed unless the recipe asks for it: a checkpoint cannot be made again, and evaluations of every one may
still be waiting for their machine.
"""

from __future__ import annotations

from pipeline.checkpoint import complete_folders, step_of
from pipeline.checkpoint_lock import Removal, remove_unless_read
from pipeline.console import console
from pipeline.events import append_event
from pipeline.kept_checkpoints import superfluous
from pipeline.run_folder import RunFolder


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
