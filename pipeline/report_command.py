"""`adaponder report`: pages on a checkpoint and on a run."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.command_line import RecipeArgument, RunsOption, SetOption, reported
from pipeline.recipe_reader import read_recipe
from pipeline.run_folder import RunFolder, runs_root


@reported
def report(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    runs: RunsOption = None,
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", help="step-00001000; the newest that was evaluated if not given."),
    ] = None,
) -> None:
    """What evaluations found, as pages: a checkpoint's, and the run's.

    HTML that needs no network, and the same as Markdown. The run's compares all
    evaluated checkpoints, and those that evaluate.baselines names.
    """
    read = read_recipe(recipe, overrides or [])
    from pipeline.reporting.stage import report as stage

    stage(read, RunFolder(runs_root(runs), read), checkpoint)
