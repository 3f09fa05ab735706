"""One rank of small trainings under every ZeRO stage, precision and way of checkpointing activations, one after the
other, each taken once to its end and once more from a checkpoint in its middle; their metrics go to a JSON file.

`torchrun --module tests.training.matrix_runs OUT RUNS SHARDS`. One process for all of them: starting ranks is most of
the time. What runs is all that a rank does, from its checks over loading and saving to MLflow.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pipeline.checkpoint import checkpoint_name
from pipeline.recipe_reader import parse_recipe
from pipeline.run_folder import RunFolder
from pipeline.training.rank import init_distributed, train_rank
from pipeline.training.stopping import StopSignals
from tests.conftest import tiny_recipe

STEPS = 10
SAVED_STEP = 6
"""In the second phase, with halting, while the ponder loss rises."""
CHECKPOINTING = ("none", "layer")
REFUSED = (0, "bf16")
"""ZeRO stage and precision that DeepSpeed trains with another optimizer."""


def settings() -> Iterator[tuple[int, str, str]]:
    """ZeRO stage, precision, activation checkpointing."""
    for stage in range(4):
        for precision in ("fp32", "bf16"):
            if (stage, precision) != REFUSED:
                for checkpointing in CHECKPOINTING:
                    yield stage, precision, checkpointing


def recipe_of(stage: int, precision: str, checkpointing: str, shards: Path) -> dict[str, Any]:
    """Two phases, the second with halting, on two ranks."""
    content = tiny_recipe(f"matrix-{stage}-{precision}-{checkpointing}", Path("unused"))
    content["data"] = {"shards": str(shards)}
    content["train"] |= {
        "strategy": f"zero{stage}",
        "precision": precision,
        "activation_checkpointing": checkpointing,
        "checkpoint_every_steps": SAVED_STEP,
    }
    pondering, halting = content["train"]["phases"]
    content["train"]["phases"] = [pondering | {"steps": 3}, halting | {"steps": STEPS - 3, "ramp_steps": 5}]
    return content


def run(content: dict[str, Any], runs: Path, signals: StopSignals) -> dict[str, Any]:
    """The metrics of each step, unbroken and from the checkpoint in the middle on; collective."""
    recipe = parse_recipe(content, "test")
    folder = RunFolder(runs, recipe)
    folder.logs.mkdir(parents=True, exist_ok=True)
    found = {}
    for attempt, name in ((1, "unbroken"), (2, "resumed")):
        train_rank(recipe, folder, attempt, "auto", signals)
        found[name] = [json.loads(line) for line in folder.metrics_file.read_text().splitlines()]
        dist.barrier()
        if attempt == 1 and dist.get_rank() == 0:  # as if the ranks had been killed before their next save
            shutil.rmtree(folder.checkpoints / checkpoint_name(STEPS))
        dist.barrier()
    started = [event for event in read_events(folder) if event["kind"] == "training_started"]
    return {**found, "started_at": [event["step"] for event in started]}


def read_events(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.events_file.read_text().splitlines()]


def main() -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    out, runs, shards = map(Path, sys.argv[1:])
    signals = StopSignals()
    init_distributed(parse_recipe(tiny_recipe("matrix", Path("unused")), "test"))
    # DeepSpeed keeps groups of ranks for the life of a process: the ranks stay together for the next setting.
    dist.destroy_process_group = lambda *_: None
    found = []
    for setting in settings():
        found.append({"setting": setting, **run(recipe_of(*setting, shards), runs, signals)})
    if dist.get_rank() == 0:
        out.write_text(json.dumps(found))
    dist.barrier()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)
