"""`adaponder`: one sub-command a stage, and `run` for all of them on this machine.

Heavy imports (torch, DeepSpeed, MLflow) happen inside the commands, so that `--help` and a mistyped recipe answer at
once.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from pipeline.checkpoint_commands import app as checkpoint_commands
from pipeline.command_line import RecipeArgument, RunsOption, SetOption, cores, reported
from pipeline.compare_command import compare
from pipeline.data_commands import app as data_commands
from pipeline.errors import UserError
from pipeline.generate_command import generate
from pipeline.heavy_imports import heavy_imports
from pipeline.launch_commands import app as launch_commands
from pipeline.plan_command import plan
from pipeline.preflight_command import check_with_ranks, preflight
from pipeline.recipe import Recipe
from pipeline.recipe_reader import read_recipe
from pipeline.report_command import report
from pipeline.run_folder import RunFolder, runs_root
from pipeline.run_status_commands import logs, status
from pipeline.watch_command import watch

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Pretrain language models that decide token by token how long to think.",
)
app.add_typer(data_commands, name="data")
app.add_typer(checkpoint_commands, name="checkpoint")
app.command()(status)
app.command()(logs)
app.command()(watch)
app.add_typer(launch_commands)
app.command()(plan)
app.command()(preflight)
app.command()(report)
app.command()(generate)
app.command()(compare)

WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Processes on this machine; as many as it has cores if not given."),
]
CheckpointOption = Annotated[str, typer.Option("--checkpoint", help="step-00001000, or latest.")]


class Resume(str, Enum):
    auto = "auto"
    weights = "weights"
    never = "never"


ResumeOption = Annotated[
    Resume,
    typer.Option(
        "--resume",
        help="auto: continue from the newest checkpoint; weights: the same with a fresh optimizer; never: refuse if "
        "there is one.",
    ),
]
WatchOption = Annotated[
    bool,
    typer.Option(
        "--watch", help="Beside the training, judge every checkpoint as it appears, as `adaponder watch` does."
    ),
]


def _open(recipe: str, overrides: list[str] | None, runs: Path | None) -> tuple[Recipe, RunFolder]:
    read = read_recipe(recipe, overrides or [])
    return read, RunFolder(runs_root(runs), read)


def _command_line() -> str:
    return shlex.join(["adaponder", *sys.argv[1:]])


@app.command()
@reported
def tokenize(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    runs: RunsOption = None,
    workers: WorkersOption = None,
    part: Annotated[
        str | None,
        typer.Option("--part", metavar="I/N", help="Make only every N-th part, from the I-th on (1/N ... N/N)."),
    ] = None,
    scan: Annotated[
        bool, typer.Option("--scan", help="With --part: only look for duplicates, before any part is made.")
    ] = False,
    finish: Annotated[bool, typer.Option("--finish", help="Join the parts that --part made.")] = False,
) -> None:
    """Documents become shards; what is finished stays finished."""
    chosen = None if part is None else _share(part)
    if finish and chosen is not None:
        raise UserError("--part makes parts, --finish joins them: give one of the two")
    if scan and chosen is None:
        raise UserError("--scan goes with --part: without it, looking for duplicates comes by itself")
    read, folder = _open(recipe, overrides, runs)
    from tokenization import stage

    workers = workers or cores()
    if finish:
        stage.finish(read, folder, _command_line())
    elif chosen is not None:
        stage.tokenize_share(read, folder, stage.Share(*chosen), workers, scan)
    else:
        stage.tokenize(read, folder, _command_line(), workers)


def _share(part: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", part)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--part {part}: I/N with I from 1 to N is expected, for instance 1/8")
    return int(match[1]), int(match[2])


@app.command()
@reported
def train(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    runs: RunsOption = None,
    resume: ResumeOption = Resume.auto,
    watched: WatchOption = False,
    check: Annotated[
        bool, typer.Option("--preflight", help="Check this machine first, as `adaponder preflight` does.")
    ] = False,
) -> None:
    """Shards become checkpoints; continues where it stopped."""
    read, folder = _open(recipe, overrides, runs)
    if check:
        check_with_ranks(read, folder, tokenized=True)
    with heavy_imports():
        from pipeline.training.stage import train as stage
        from pipeline.watching.with_training import train_watched
    if not watched:
        stage(read, folder, resume.value)
        return
    _, unjudged = train_watched(read, folder, resume.value)
    if unjudged is not None:
        raise unjudged


@app.command()
@reported
def evaluate(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    runs: RunsOption = None,
    checkpoint: CheckpointOption = "latest",
    suites: Annotated[
        list[str] | None,
        typer.Option("--suite", help="Which judgement; may be repeated. The recipe's evaluate.suites if not given."),
    ] = None,
) -> None:
    """A checkpoint is judged: loss by source, depth, plots."""
    read, folder = _open(recipe, overrides, runs)
    with heavy_imports():
        from pipeline.evaluation.stage import evaluate_suites

    evaluate_suites(read, folder, checkpoint, suites or list(read.evaluate.suites))


@app.command()
@reported
def release(
    recipe: Annotated[
        str | None, typer.Argument(help="A YAML file, or the name of a shipped recipe (quickstart).")
    ] = None,
    overrides: SetOption = None,
    runs: RunsOption = None,
    checkpoint: CheckpointOption = "latest",
    revision: Annotated[
        str,
        typer.Option(
            "--revision", help="main, or step1000: that step, kept beside main. A branch of that name on a hub."
        ),
    ] = "main",
    url: Annotated[
        str | None, typer.Option("--to", metavar="URL", help="Copy it there too: s3://..., gs://..., file:///...")
    ] = None,
    repo: Annotated[
        str | None, typer.Option("--push", metavar="OWNER/NAME", help="Upload it to the Hugging Face hub too.")
    ] = None,
    verify: Annotated[
        Path | None,
        typer.Option("--verify", metavar="FOLDER", help="Only compare a standing release with its provenance.json."),
    ] = None,
) -> None:
    """A checkpoint becomes a verified folder that transformers loads.

    The hub's token is that of `hf auth login` or of HF_TOKEN, never of the
    command line. --verify names every file that is not what it was, and ends
    with 1 if there is one.
    """
    if verify is not None:
        if recipe is not None:
            raise UserError("--verify takes a release's folder and no recipe")
        from pipeline.release.standing import verify_and_tell

        verify_and_tell(verify)
        return
    if recipe is None:
        raise UserError("release needs a recipe, or --verify FOLDER")
    read, folder = _open(recipe, overrides, runs)
    with heavy_imports():
        from pipeline.release.stage import release as stage

    stage(read, folder, checkpoint, command=_command_line(), revision=revision, url=url, repo=repo)


@app.command()
@reported
def run(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    runs: RunsOption = None,
    resume: ResumeOption = Resume.auto,
    watched: WatchOption = False,
) -> None:
    """All stages on this machine; finished ones are skipped."""
    read, folder = _open(recipe, overrides, runs)
    with heavy_imports():
        from pipeline.whole_run import whole_run

    whole_run(read, folder, resume.value, _command_line(), watched)


def main() -> None:
    """Entry point of the console script."""
    # Set before the first import of the libraries: they would talk in between our lines.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    app()
