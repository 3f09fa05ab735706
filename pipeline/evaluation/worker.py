"""Evaluation on several ranks: `torchrun ... --module pipeline.evaluation.worker RECIPE --runs ROOT [--suite NAME]`.

Rank 0 does what `adaponder evaluate` does; the others answer their part of what the suite `tasks` asks the network.
Other suites run on rank 0 alone, while the others wait.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from launch.local import die_with_parent
from pipeline.command_line import reported
from pipeline.recipe import Recipe
from pipeline.recipe_reader import read_recipe
from pipeline.run_folder import RunFolder

LONGEST_WAIT = timedelta(days=30)
"""The others wait while rank 0 makes requests and runs other suites; if it dies, they notice by the lost connection."""


@reported
def main(arguments: Sequence[str] | None = None) -> None:
    die_with_parent()
    parser = argparse.ArgumentParser(prog="pipeline.evaluation.worker")
    parser.add_argument("recipe")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--checkpoint", default="latest")
    parser.add_argument("--suite", action="append", dest="suites")
    given = parser.parse_args(arguments)
    recipe = read_recipe(given.recipe)
    folder = RunFolder(given.runs.absolute(), recipe)

    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Batches and answers are plain data: gloo sends them, whatever the network runs on.
    dist.init_process_group("gloo", timeout=LONGEST_WAIT)
    if dist.get_rank() == 0:
        _lead(recipe, folder, given.checkpoint, given.suites or list(recipe.evaluate.suites))
    else:
        _follow(recipe, folder)
    dist.destroy_process_group()


def _lead(recipe: Recipe, folder: RunFolder, checkpoint: str, suites: list[str]) -> None:
    from pipeline.evaluation.harness.answering import let_others_go
    from pipeline.evaluation.stage import evaluate_suites

    @reported  # here too: an error is told before the others are let go, which may fail in its turn
    def lead() -> None:
        evaluate_suites(recipe, folder, checkpoint, suites)

    try:
        lead()
    finally:
        let_others_go()


def _follow(recipe: Recipe, folder: RunFolder) -> None:
    from pipeline.checkpoint import find_checkpoint
    from pipeline.data.manifest import read_manifest
    from pipeline.evaluation.harness.answering import Answerer, follow
    from pipeline.evaluation.subject import Subject

    def load(checkpoint: str) -> Answerer:
        folder.open_shards()
        subject = Subject(recipe, folder, find_checkpoint(folder.checkpoints, checkpoint), read_manifest(folder.shards))
        return Answerer(subject.model, subject.tokenizer)

    follow(load)


if __name__ == "__main__":
    code: object = 1
    try:
        main()
        code = 0
    except SystemExit as ended:
        code = ended.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # A failed rank must not wait for the others in an exit handler: they may be waiting for it.
        os._exit(code if isinstance(code, int) else 1)
