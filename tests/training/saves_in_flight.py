"""One rank whose saves are in flight while something else happens; what came of it goes to JSON, a file a rank.

`torchrun --module tests.training.saves_in_flight OUT FOLDER`. One process for all cases: starting ranks is most of the
time.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
import uuid
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pipeline.checkpoint import has_checkpoint
from pipeline.recipe import Recipe
from pipeline.recipe_reader import parse_recipe
from pipeline.training import saves_in_flight
from pipeline.training.agreement import begin_together
from pipeline.training.checkpoint_files import CheckpointFiles
from pipeline.training.engine import Engine
from pipeline.training.rank import init_distributed
from pipeline.training.saves_in_flight import Completed, SavesInFlight
from tests.conftest import tiny_recipe
from tests.training.saved_and_loaded import begin, engine_of, state_of, step, told, written_after

CPU = torch.device("cpu")
STATES = "zero_pp_rank_1_mp_rank_00_optim_states.pt"


def in_order(engine: Engine, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Two saves, the first of which takes its time."""
    event = threading.Event()
    completed: list[Completed] = []
    with SavesInFlight(background=True) as saves:
        state = state_of(recipe, 1, None)
        begin(saves, engine, folder, state, completed.append, partial(written_after, event))
        threading.Timer(0.5, event.set).start()
        before: list[bool] = []

        def note(files: CheckpointFiles) -> CheckpointFiles:
            before.append((folder / "step-00000002" / "COMPLETE").exists())
            return files

        begin(
            saves,
            engine,
            folder,
            state.model_copy(update={"step": 3, "save_id": uuid.uuid4().hex}),
            completed.append,
            note,
        )
    return {
        "before": before,
        "events": [[one.seconds, one.seconds_lost] for one in completed],
        "complete": has_checkpoint(folder) and (folder / "step-00000003" / "COMPLETE").exists(),
    }


def refused(engine: Engine, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Rank 1's disk is full, once it has been found out at a step and once by waiting."""

    def full(files: CheckpointFiles) -> CheckpointFiles:
        if dist.get_rank() == 1:
            (folder / "step-00000002.partial" / STATES).symlink_to("/dev/full")
        return files

    found: dict[str, Any] = {"steps": 0}
    state = state_of(recipe, 1, None)
    saves = SavesInFlight(background=True)
    begin(saves, engine, folder, state, change=full)
    while not begin_together(lambda: None, CPU, save_failed=saves.failed).save_failed and found["steps"] < 300:
        step(engine, recipe, 3)
        found["steps"] += 1
    found["at_a_step"] = told(saves.raise_failure)
    saves = SavesInFlight(background=True)
    begin(saves, engine, folder, state.model_copy(update={"save_id": "another"}), change=full)
    found["waited"] = told(saves.wait)
    found["complete"] = has_checkpoint(folder)
    return found


def training_failed(engine: Engine, recipe: Recipe, folder: Path, writes: bool) -> dict[str, Any]:
    """The training fails while rank 1 has not written yet; it does soon (`writes`), or long after all have ended."""
    event = threading.Event()
    saves_in_flight._FAILED_TRAINING_WAITS_SECONDS = 10.0 if writes else 1.0
    if writes or dist.get_rank() == 0:
        threading.Timer(0.5, event.set).start()
    began = time.monotonic()
    saves = SavesInFlight(background=True)
    try:
        with saves:
            begin(saves, engine, folder, state_of(recipe, 1, None), change=partial(written_after, event))
            raise KeyError("a bug of the training")
    except KeyError as error:
        message = str(error)
    found = {"raised": message, "seconds": time.monotonic() - began, "complete": has_checkpoint(folder)}
    dist.barrier()
    event.set()
    return found | {"late": told(saves.wait), "complete_late": has_checkpoint(folder)}


def main() -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    content = tiny_recipe("saved", Path("unused"))
    content["train"]["global_batch"] = 4
    recipe = parse_recipe(content, "test")
    init_distributed(recipe)
    out, folder = Path(sys.argv[1]), Path(sys.argv[2])
    engine = engine_of(recipe)
    step(engine, recipe, 0)
    found = {
        "in_order": in_order(engine, recipe, folder / "in_order"),
        "refused": refused(engine, recipe, folder / "refused"),
        "failed": training_failed(engine, recipe, folder / "failed", writes=True),
        "abandoned": training_failed(engine, recipe, folder / "abandoned", writes=False),
    }
    out.with_name(f"{out.name}-{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.barrier()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)
