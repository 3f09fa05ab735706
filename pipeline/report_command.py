"""`adaponder report`: pages on a checkpoint and on a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.command_line import reported
from pipeline.recipe_reader import read_recipe
from pipeline.run_folder import RunFolder, runs_root


@reported
def report(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped recipe (quickstart).")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=C", help="Override a field of the recipe; may be repeated."),
    ] = None,
    runs: Annotated[
        Path | None, typer.Option("--runs", help="Folder of all runs; else ADAPONDER_RUNS, else ./runs.")
    ] = None,
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
