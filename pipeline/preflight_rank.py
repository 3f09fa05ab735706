"""The process of one rank of a preflight: `torchrun --module pipeline.preflight_rank RECIPE --runs ROOT`.

Started like a rank of the training and before it, in a process of its own: what it joins and allocates is gone when
the training starts, and a check that hangs or is killed takes nothing else with it.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.local import die_with_parent
from pipeline.errors import AdaPonderError
from pipeline.recipe import Recipe
from pipeline.recipe_reader import read_recipe
from pipeline.run_folder import RunFolder


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where nothing failed; 2 where the user is mistaken, else 1, on every rank, and rank 0 has said what."""
    die_with_parent()
    parser = argparse.ArgumentParser(prog="pipeline.preflight_rank")
    parser.add_argument("recipe")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--gpus-per-node", metavar="N|ranks")
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("--not-tokenized", action="store_true")
    given = parser.parse_args(arguments)
    recipe = read_recipe(given.recipe)
    folder = RunFolder(given.runs.absolute(), recipe)

    from launch.preflight.check import Checked, Context
    from launch.preflight.meeting import meet
    from launch.preflight.report import show, write_report
    from launch.preflight.run_checks import ON_RANKS, exit_code, run_checks
    from pipeline.console import console, error_console

    def mock_step(recipe: Recipe) -> dict[str, Any]:
        from pipeline.training import mock_step  # DeepSpeed takes seconds, and most of what is wrong shows before

        return mock_step.mock_step(recipe)

    try:
        meeting = meet(recipe.cluster.preflight.timeout_seconds, os.environ)
        gpus = given.gpus_per_node if given.gpus_per_node in (None, "ranks") else int(given.gpus_per_node)
        context = Context(recipe, folder, meeting, gpus, not given.not_tokenized, mock_step)

        def report(done: list[Checked]) -> None:
            if not given.quiet:
                show(context, done)
            write_report(context, done)

        def tell(name: str) -> None:
            if not given.quiet:
                console.print(f"preflight: {name} ...", style="dim")
                sys.stdout.flush()

        done = run_checks(context, ON_RANKS, tell, report)
        meeting.part()
        return exit_code(done)
    except (AdaPonderError, OSError) as error:
        error_console.print(f"preflight: {error}", style="red", markup=False)
        return 1


if __name__ == "__main__":
    code = 1
    try:
        code = main()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # A rank must not wait for the others in an exit handler: they may be waiting for it.
        os._exit(code)
