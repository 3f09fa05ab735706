"""Have the checkpoints of a study judged by the pipeline's suites.

Many small judgements: a process takes one after another, since starting one for each would take longer than the
judgements themselves.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch

from benchmarks.paper.progress import progress
from benchmarks.paper.study import Study
from pipeline.checkpoint import checkpoint_name
from pipeline.errors import WorldError


def judge(study: Study, jobs: int, threads: int) -> None:
    """Judge every member's last checkpoint by its suites, and its first where the member says so.

    What stands is not judged again. Raises `WorldError` with the logs where a process was killed, and what a judgement
    raises.
    """
    wanted: list[tuple[str, str, Sequence[str]]] = []
    for training in study.trainings:
        recipe = str(study.write_recipe(training))
        wanted.append((recipe, "latest", training.member.suites))
        if training.member.judged_at_start:
            wanted.append((recipe, checkpoint_name(0), ["validation"]))
    wanted.sort(key=lambda each: -len(each[2]))  # the longest first, or a process waits for it at the end
    logs = study.root / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    spawned = multiprocessing.get_context("spawn")
    with (
        progress("judge", len(wanted)) as advance,
        ProcessPoolExecutor(jobs, spawned, initializer=_begin, initargs=(logs, threads)) as pool,
    ):
        judged = {pool.submit(_judge, study.root, *each): each for each in wanted}
        try:
            for done in as_completed(judged):
                done.result()
                advance(Path(judged[done][0]).stem)
        except BrokenProcessPool as error:
            raise WorldError(f"a process that judges was killed; logs: {logs}/judging-*.log") from error
        finally:
            pool.shutdown(cancel_futures=True)


def _begin(logs: Path, threads: int) -> None:
    """Of a process: what it says goes to a log of its own."""
    torch.set_num_threads(threads)
    with open(logs / f"judging-{os.getpid()}.log", "ab") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())


def _judge(root: Path, recipe_file: str, checkpoint: str, suites: Sequence[str]) -> None:
    from pipeline.evaluation.stage import evaluate_suites
    from pipeline.recipe_reader import read_recipe
    from pipeline.run_folder import RunFolder

    recipe = read_recipe(recipe_file)
    evaluate_suites(recipe, RunFolder(root, recipe), checkpoint, list(suites))
