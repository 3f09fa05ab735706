"""Ranks of which one meets what cannot be done: torchrun's `--module tests.evaluation.failing_job RECIPE --runs ROOT`.

Rank 0 prints the answers to the jobs before, and what it hears of the failure.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from pipeline.checkpoint import find_checkpoint
from pipeline.data.manifest import read_manifest
from pipeline.errors import WorldError
from pipeline.evaluation.ranks import answered, follow, let_others_go
from pipeline.evaluation.subject import Subject
from pipeline.recipe_reader import read_recipe
from pipeline.run_folder import RunFolder

LAST_GOOD = 20


@dataclass(frozen=True)
class Square:
    number: int

    def run(self, subject: Subject) -> tuple[int, int]:
        if self.number > LAST_GOOD and dist.get_rank() == 1:
            raise ValueError(f"{self.number} is too much")
        return self.number**2, dist.get_rank()


def main() -> None:
    folder = RunFolder(Path(sys.argv[3]), read_recipe(sys.argv[1]))
    dist.init_process_group("gloo")

    def load(checkpoint: str) -> Subject:
        found = find_checkpoint(folder.checkpoints, checkpoint)
        return Subject(folder.recipe, folder, found, read_manifest(folder.shards))

    if dist.get_rank():
        try:
            follow(load)
        except ValueError as error:
            print(f"rank {dist.get_rank()} ends: {error}", flush=True)
        return
    done = []
    try:
        for job, (square, rank) in answered(load("latest"), map(Square, range(40))):
            assert square == job.number**2
            done.append(rank)
    except WorldError as error:
        print(f"ranks {done}; {error}", flush=True)
    finally:
        let_others_go()


if __name__ == "__main__":
    main()
    os._exit(0)  # as a rank does: not waiting for the others
