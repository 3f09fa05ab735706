"""`adaponder watch`: every checkpoint judged by itself as it appears."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.command_line import RecipeArgument, RunsOption, SetOption, reported


@reported
def watch(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    runs: RunsOption = None,
    once: Annotated[bool, typer.Option("--once", help="Judge the checkpoints that there are, and end.")] = False,
    retry: Annotated[
        bool, typer.Option("--retry", help="Try again what was given up after evaluate.jobs.tries.")
    ] = False,
) -> None:
    """Checkpoints are judged as they appear, each once, until the last one is.

    By the recipe's evaluate section: suites for each, full_suites for some and
    the last, as jobs says. Several watchers may share a run; killed anywhere,
    the same command continues.
    """
    from pipeline.watching.parent import end_with_parent

    end_with_parent()
    from pipeline.recipe_reader import read_recipe
    from pipeline.run_folder import RunFolder, runs_root

    read = read_recipe(recipe, overrides or [])
    from pipeline.watching.start import watch as begin

    begin(read, RunFolder(runs_root(runs), read), once=once, retry=retry)
