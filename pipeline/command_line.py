"""What all commands share: arguments that mean the same everywhere, and how a command ends - in its result, or in one
line on stderr and an exit code."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from pipeline.console import error_console
from pipeline.errors import AdaPonderError

RecipeArgument = Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped recipe (quickstart).")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a field of the recipe; may be repeated.")
]
RunsOption = Annotated[
    Path | None, typer.Option("--runs", help="Folder of all runs; else ADAPONDER_RUNS, else ./runs.")
]


def reported(command: Callable[..., None]) -> Callable[..., None]:
    """Errors meant for the operator become one line and their exit code; bugs keep their traceback."""

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except AdaPonderError as error:
            _end(str(error), error.exit_code)
        except OSError as error:
            _end(f"{error.filename or 'a file'}: {error.strerror or error}; the same command continues", 1)
        except KeyboardInterrupt:
            _end("interrupted; the same command continues", 130)

    return run


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0))


def _end(message: str, exit_code: int) -> NoReturn:
    error_console.print(f"adaponder: {message}", style="red", markup=False)
    sys.exit(exit_code)
