"""Evaluation on several ranks: `torchrun ... --module pipeline.evaluation.worker RECIPE --runs ROOT [--suite NAME]`.

Rank 0 does what `adaponder evaluate` does; the others do their part of what the suites ask the network.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from launch.local import die_with_parent
from launch.torchrun import FAILURES_VARIABLE, LastWords
from pipeline.console import error_console
from pipeline.errors import AdaPonderError
from pipeline.recipe import Recipe
from pipeline.recipe_reader import read_recipe
from pipeline.run_folder import RunFolder

LONGEST_WAIT = timedelta(days=30)
"""The others wait while rank 0 makes requests and writes; if it dies, they notice by the lost connection."""
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    die_with_parent()
    parser = argparse.ArgumentParser(prog="pipeline.evaluation.worker")
    parser.add_argument("recipe")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--checkpoint", default="latest")
    parser.add_argument("--suite", action="append", dest="suites")
    given = parser.parse_args(arguments)
    rank = int(os.environ["RANK"])
    try:
        recipe = read_recipe(given.recipe)
        folder = RunFolder(given.runs.absolute(), recipe)

        import torch
        import torch.distributed as dist

        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        # Jobs and answers are plain data: gloo sends them, whatever the network runs on.
        dist.init_process_group("gloo", timeout=LONGEST_WAIT)
        if rank == 0:
            _lead(recipe, folder, given.checkpoint, given.suites or list(recipe.evaluate.suites))
        else:
            _follow(recipe, folder)
        dist.destroy_process_group()
    except BaseException as error:
        return _tell(rank, error)
    return 0


def _lead(recipe: Recipe, folder: RunFolder, checkpoint: str, suites: list[str]) -> None:
    from pipeline.evaluation.ranks import let_others_go
    from pipeline.evaluation.stage import evaluate_suites

    try:
        evaluate_suites(recipe, folder, checkpoint, suites)
    finally:
        let_others_go()


def _follow(recipe: Recipe, folder: RunFolder) -> None:
    from pipeline.checkpoint import find_checkpoint
    from pipeline.data.manifest import read_manifest
    from pipeline.evaluation.ranks import follow
    from pipeline.evaluation.subject import Subject

    def load(checkpoint: str) -> Subject:
        folder.open_shards()
        return Subject(recipe, folder, find_checkpoint(folder.checkpoints, checkpoint), read_manifest(folder.shards))

    follow(load)


def _tell(rank: int, error: BaseException) -> int:
    """Say what went wrong, here or by the torchrun that keeps a rank's last words; returns the exit code.

    What a rank says of one that it has lost is of use only where nobody knows more.
    """
    from pipeline.evaluation.ranks import LostRank

    code, line = 1, f"{type(error).__name__}: {error}"
    if isinstance(error, AdaPonderError):
        code, line = error.exit_code, str(error)
    elif isinstance(error, OSError):
        line = f"{error.filename or 'a file'}: {error.strerror or error}; the same command continues"
    elif isinstance(error, KeyboardInterrupt):
        code, line = _INTERRUPTED, "interrupted; the same command continues"
    else:
        traceback.print_exception(error)
    LastWords(line, isinstance(error, LostRank), time.time(), code).leave(rank)
    if FAILURES_VARIABLE not in os.environ:
        error_console.print(f"adaponder: {line}", style="red", markup=False)
    return code


if __name__ == "__main__":
    code = 1
    try:
        code = main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # A failed rank must not wait for the others in an exit handler: they may be waiting for it.
        os._exit(code)
