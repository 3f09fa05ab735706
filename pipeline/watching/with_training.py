"""A training and its watcher by one command."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import AdaPonderError
from pipeline.recipe import Recipe
from pipeline.run_folder import RunFolder
from pipeline.training.stage import train
from pipeline.watching.beside import WatcherBeside
from pipeline.watching.start import check_watch, keep_recipe


def train_watched(recipe: Recipe, folder: RunFolder, resume: str = "auto") -> tuple[Path, AdaPonderError | None]:
    """Train with a watcher beside it, and wait until all checkpoints are judged; the last one, and what went wrong with
    judging.

    Raises what `train` raises, whose watcher then is ended too, and `Stopped` or `KeyboardInterrupt` when the command
    was asked to stop while it waited.
    """
    check_watch(recipe, folder)
    with WatcherBeside(recipe, folder, keep_recipe(recipe, folder)) as watcher:
        last = train(recipe, folder, resume)
        return last, watcher.finish()
