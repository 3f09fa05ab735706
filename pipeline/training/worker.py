"""The process of one rank: `torchrun --module pipeline.training.worker RECIPE --runs ROOT`.

Any launcher that sets torchrun's environment (RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT) will do. Light on
purpose: it ties itself to its parent, listens for signals and finds its log file before anything heavy is imported.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.local import die_with_parent
from pipeline.heavy_imports import heavy_imports
from pipeline.recipe_reader import read_recipe
from pipeline.run_folder import RunFolder
from pipeline.training.attempt import ATTEMPT_VARIABLE, log_to_file, next_attempt, report_failure
from pipeline.training.stopping import StopSignals


def main(arguments: Sequence[str] | None = None) -> int:
    die_with_parent()
    signals = StopSignals()
    parser = argparse.ArgumentParser(prog="pipeline.training.worker")
    parser.add_argument("recipe")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--resume", choices=["auto", "weights", "never"], default="auto")
    given = parser.parse_args(arguments)
    rank = int(os.environ["RANK"])
    recipe = read_recipe(given.recipe)
    folder = RunFolder(given.runs.absolute(), recipe)
    attempt = int(os.environ.get(ATTEMPT_VARIABLE, 0))
    if attempt:
        log_to_file(folder.logs, attempt, rank)
    try:
        with heavy_imports():
            from pipeline.training.agreement import from_rank_0
            from pipeline.training.rank import init_distributed, train_rank

        init_distributed(recipe)
        if not attempt:  # started without the command: the ranks agree on a number
            attempt = from_rank_0(next_attempt(folder.logs) if rank == 0 else None)
            log_to_file(folder.logs, attempt, rank)
        train_rank(recipe, folder, attempt, given.resume, signals)
        return 0
    except BaseException as error:
        return report_failure(folder.logs, attempt, rank, error)


if __name__ == "__main__":
    code = 1
    try:
        code = main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # A failed rank must not wait for the others in an exit handler: they may be waiting for it.
        os._exit(code)
