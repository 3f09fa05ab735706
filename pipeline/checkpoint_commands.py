"""`adaponder checkpoint`: what a run has saved, whether it is whole, and its weights without the states of training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.command_line import RunsOption, reported
from pipeline.heavy_imports import heavy_imports

app = typer.Typer(no_args_is_help=True, help="List and check a run's checkpoints, and take weights out of them.")

RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's folder, or its name in the folder of all runs.")
]


@app.command("list")
@reported
def list_(
    run: RunArgument,
    runs: RunsOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of objects as JSON.")] = False,
) -> None:
    """A table of the run's checkpoints, oldest first.

    Step, phase, tokens, size on disk, number of ranks, ZeRO stage and precision
    that wrote it, age, and whether it is whole as far as its files' sizes tell.
    What is no checkpoint is listed too: half written, half removed, set aside
    because training could not go on from it.
    """
    with heavy_imports():
        from pipeline.checkpoint_listing import list_and_tell

    list_and_tell(run, runs, as_json)


@app.command()
@reported
def verify(
    run: RunArgument,
    runs: RunsOption = None,
    checkpoint: Annotated[
        str | None, typer.Option("--checkpoint", help="step-00001000, or latest; all where none is given.")
    ] = None,
) -> None:
    """Read every file and compare it with the hashes taken at saving.

    Each file that is not what it was is one line. Checkpoints of older versions
    have sizes only, which is said. Exit code 0: all is whole; 1: something is
    damaged; 2: RUN holds no such checkpoint.
    """
    with heavy_imports():
        from pipeline.checkpoint_listing import verify_and_tell

    verify_and_tell(run, runs, checkpoint)


@app.command()
@reported
def export(
    run: RunArgument,
    runs: RunsOption = None,
    checkpoint: Annotated[str, typer.Option("--checkpoint", help="step-00001000, or latest.")] = "latest",
    output: Annotated[
        Path | None, typer.Option("--output", help="The folder to make; else RUN/export/step-00001000.")
    ] = None,
) -> None:
    """Weights in fp32 as safetensors, whatever ZeRO stage wrote them.

    The folder loads with AdaPonderForCausalLM.from_pretrained where this project
    is installed. It holds no tokenizer and no code, and nothing is verified
    against data: to publish, take `adaponder release`. A folder that is there
    already is not touched.
    """
    with heavy_imports():
        from pipeline.checkpoint_export import export_and_tell

    export_and_tell(run, runs, checkpoint, output)
