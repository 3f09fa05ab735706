"""The prompts of a command line: given there, in files, or on standard input."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import UserError

PromptOption = Annotated[list[str] | None, typer.Option("--prompt", help="A text to continue; may be repeated.")]
PromptFileOption = Annotated[
    list[Path] | None,
    typer.Option("--prompt-file", help="A file with one prompt; may be repeated. A line break at its end is left out."),
]


def prompts_of(given: list[str] | None, files: list[Path] | None) -> list[str]:
    """All prompts in that order; standard input is one where neither is given.

    Raises `UserError` for a file that cannot be read as UTF-8, and where nothing is given and a person sits at the
    terminal.
    """
    prompts = list(given or [])
    for path in files or []:
        try:
            prompts.append(_without_last_break(path.read_bytes().decode()))
        except OSError as error:
            raise UserError(f"--prompt-file {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UserError(f"--prompt-file {path} is not UTF-8: {error}") from error
    if prompts:
        return prompts
    if sys.stdin.isatty():
        raise UserError("no prompt: give --prompt TEXT or --prompt-file FILE, or a text on standard input")
    try:
        return [_without_last_break(sys.stdin.buffer.read().decode())]
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is not UTF-8: {error}") from error


def _without_last_break(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r")
