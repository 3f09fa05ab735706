"""The process of one rank: `torchrun --module pipeline.training.worker RECIPE --runs ROOT`.

Any launcher that sets torchrun's environment (RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT) will do. Light on
purpose: it ties itself to its parent, listens for signals and finds its log file before anything heavy is imported.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.local import before_child, die_with_parent
from launch.preflight.failures import failures_of
from launch.ssh_session import SshSession
from pipeline.errors import UserError, WorldError
from pipeline.heavy_imports import heavy_imports
from pipeline.recipe_reader import read_recipe
from pipeline.run_folder import RunFolder
from pipeline.training.attempt import ATTEMPT_VARIABLE, log_to_file, next_attempt, report_failure
from pipeline.training.stopping import StopSignals

_LAST_WORDS_SECONDS = 20.0
"""For a rank that is part of a training, and fails or saves, when its session ends."""


def main(arguments: Sequence[str] | None = None) -> int:
    die_with_parent()
    session = SshSession()
    signals = StopSignals()
    parser = argparse.ArgumentParser(prog="pipeline.training.worker")
    parser.add_argument("recipe")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--resume", choices=["auto", "weights", "never"], default="auto")
    parser.add_argument("--preflight", metavar="GPUS", help="check the nodes first: GPUs a node, or `ranks`")
    given = parser.parse_args(arguments)
    rank = int(os.environ["RANK"])
    attempt = int(os.environ.get(ATTEMPT_VARIABLE, 0))
    logs: Path | None = None
    try:
        recipe = read_recipe(given.recipe)
        folder = RunFolder(given.runs.absolute(), recipe)
        logs = folder.logs
        if given.preflight is not None:  # its table is for whoever started the ranks, and not for their logs
            _preflight(given.recipe, folder, given.preflight)
        if attempt:
            log_to_file(folder.logs, attempt, rank)
        with heavy_imports():
            from pipeline.training.agreement import from_rank_0
            from pipeline.training.rank import init_distributed, train_rank

        init_distributed(recipe)
        session.last_words_seconds = _LAST_WORDS_SECONDS
        if not attempt:  # started without the command: the ranks agree on a number
            attempt = from_rank_0(next_attempt(folder.logs) if rank == 0 else None)
            log_to_file(folder.logs, attempt, rank)
        train_rank(recipe, folder, attempt, given.resume, signals)
        return 0
    except BaseException as error:
        return report_failure(logs, attempt, rank, error)


def _preflight(recipe: str, folder: RunFolder, gpus: str) -> None:
    """Check this rank and its node together with all the others; `WorldError` on all where something is wrong on any.

    In a process of its own, in which a check may hang or be killed. Signals to stop wait for the training's start.
    """
    module = [sys.executable, "-m", "pipeline.preflight_rank", recipe, "--runs", str(folder.root)]
    process = subprocess.Popen([*module, "--gpus-per-node", gpus], preexec_fn=before_child)
    code = process.wait()
    if code < 0:
        raise WorldError(f"the preflight was killed by signal {-code}: out of memory?")
    if code:
        wrong = "; ".join(failures_of(folder.preflight_file)) or "see the first rank's output"
        raise (UserError if code == UserError.exit_code else WorldError)(f"the preflight failed: {wrong}")


if __name__ == "__main__":
    code = 1
    try:
        code = main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # A failed rank must not wait for the others in an exit handler: they may be waiting for it.
        os._exit(code)
