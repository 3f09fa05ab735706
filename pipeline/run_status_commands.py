"""`adaponder status` and `adaponder logs`: where a run stands and what its ranks said."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from pipeline.checkpoint_commands import RunArgument, RunsOption
from pipeline.command_line import reported


@reported
def status(
    run: RunArgument,
    runs: RunsOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print an object as JSON.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare every file of the last checkpoint with its hash.")
    ] = False,
) -> None:
    """Where a run stands: attempts, steps, time left, last checkpoint, evaluations, last error."""
    from pipeline.run_status import run_of, status_of

    found = status_of(run_of(run, runs), hashes=verify)
    if as_json:
        print(found.as_json())
        return
    from pipeline.run_status_table import tell

    tell(found)


@reported
def logs(
    run: RunArgument,
    runs: RunsOption = None,
    rank: Annotated[int, typer.Option("--rank", min=0, help="Whose log.")] = 0,
    launcher: Annotated[bool, typer.Option("--launcher", help="The log of what started the ranks.")] = False,
    attempt: Annotated[
        int | None, typer.Option("--attempt", min=1, help="Which start; the newest if not given.")
    ] = None,
    lines: Annotated[int, typer.Option("--lines", min=0, help="How many of the last ones.")] = 40,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with what is written, until Ctrl-C.")] = False,
) -> None:
    """The last lines of a rank's log."""
    from pipeline.run_status import last_lines, log_file, run_of

    path = log_file(run_of(run, runs), None if launcher else rank, attempt)
    typer.echo(f"{path}:", err=True)
    for line in last_lines(path, lines):
        typer.echo(line)
    if follow:
        with open(path, encoding="utf-8", errors="replace") as file:
            file.seek(0, 2)
            while True:
                if text := file.read():
                    typer.echo(text, nl=False)
                else:
                    time.sleep(0.5)
