"""`adaponder`: one sub-command a stage, and `run` for all of them on this machine.

Heavy imports (torch, DeepSpeed, MLflow) happen inside the commands, so that `--help` and a mistyped recipe answer at
once.
"""

from __future__ import annotations

import functools
import os
import shlex
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from pipeline.console import error_console
from pipeline.errors import AdaPonderError
from pipeline.recipe import Recipe
from pipeline.recipe_reader import read_recipe
from pipeline.run_folder import RunFolder, runs_root

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Pretrain language models that decide token by token how long to think.",
)

RecipeArgument = Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped recipe (quickstart).")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a field of the recipe; may be repeated.")
]
RunsOption = Annotated[
    Path | None, typer.Option("--runs", help="Folder of all runs; else ADAPONDER_RUNS, else ./runs.")
]
CheckpointOption = Annotated[str, typer.Option("--checkpoint", help="step-00001000, or latest.")]


class Resume(str, Enum):
    auto = "auto"
    never = "never"


ResumeOption = Annotated[
    Resume, typer.Option("--resume", help="auto: continue from the newest checkpoint; never: refuse if there is one.")
]


def _open(recipe: str, overrides: list[str] | None, runs: Path | None) -> tuple[Recipe, RunFolder]:
    read = read_recipe(recipe, overrides or [])
    return read, RunFolder(runs_root(runs), read)


def _reported(command: Callable[..., None]) -> Callable[..., None]:
    """Errors meant for the operator become one line and their exit code; bugs keep their traceback."""

    @functools.wraps(command)
    def reported(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except AdaPonderError as error:
            _end(str(error), error.exit_code)
        except OSError as error:
            _end(f"{error.filename or 'a file'}: {error.strerror or error}; the same command continues", 1)
        except KeyboardInterrupt:
            _end("interrupted; the same command continues", 130)

    return reported


def _end(message: str, exit_code: int) -> NoReturn:
    error_console.print(f"adaponder: {message}", style="red", markup=False)
    sys.exit(exit_code)


def _command_line() -> str:
    return shlex.join(["adaponder", *sys.argv[1:]])


@app.command()
@_reported
def tokenize(recipe: RecipeArgument, overrides: SetOption = None, runs: RunsOption = None) -> None:
    """Documents become shards."""
    read, folder = _open(recipe, overrides, runs)
    from tokenization.stage import tokenize as stage

    stage(read, folder, _command_line())


@app.command()
@_reported
def train(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    runs: RunsOption = None,
    resume: ResumeOption = Resume.auto,
) -> None:
    """Shards become checkpoints; continues where it stopped."""
    read, folder = _open(recipe, overrides, runs)
    from pipeline.training.stage import train as stage

    stage(read, folder, resume.value)


@app.command()
@_reported
def evaluate(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    runs: RunsOption = None,
    checkpoint: CheckpointOption = "latest",
) -> None:
    """A checkpoint is judged: loss by source, depth, plots."""
    read, folder = _open(recipe, overrides, runs)
    from pipeline.evaluation.stage import evaluate as stage

    stage(read, folder, checkpoint)


@app.command()
@_reported
def release(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    runs: RunsOption = None,
    checkpoint: CheckpointOption = "latest",
) -> None:
    """A checkpoint becomes a verified folder that transformers loads."""
    read, folder = _open(recipe, overrides, runs)
    from pipeline.release.stage import release as stage

    stage(read, folder, checkpoint, command=_command_line())


@app.command()
@_reported
def run(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    runs: RunsOption = None,
    resume: ResumeOption = Resume.auto,
) -> None:
    """All stages on this machine; finished ones are skipped."""
    read, folder = _open(recipe, overrides, runs)
    from pipeline.whole_run import whole_run

    whole_run(read, folder, resume.value, _command_line())


def main() -> None:
    """Entry point of the console script."""
    # Set before the first import of the libraries: they would talk in between our lines.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    app()
