"""One rank that saves a small training's engine and loads it again, under many settings; what came of it goes to JSON.

`torchrun --module tests.training.saved_and_loaded OUT FOLDER`. One process for all settings: starting ranks is most of
the time.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pipeline.checkpoint import FROZEN_FILE, LogitsFingerprint, TrainerState, has_checkpoint, open_checkpoint
from pipeline.checkpoint_marker import MarkedFile, wrong_files
from pipeline.errors import WorldError
from pipeline.recipe import Recipe
from pipeline.recipe_reader import parse_recipe
from pipeline.training.checkpoint_files import CheckpointFiles, take_checkpoint
from pipeline.training.computation import set_computation
from pipeline.training.engine import Engine, build_engine, set_halting, set_learning_rates
from pipeline.training.fingerprint import check_fingerprint, other_network, take_fingerprint
from pipeline.training.model_start import start_model
from pipeline.training.phases import learning_rates
from pipeline.training.rank import init_distributed
from pipeline.training.saves_in_flight import Completed, SavesInFlight
from tests.conftest import tiny_recipe

SETTINGS = [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16"), (3, "bf16")]
"""ZeRO stage, precision."""


def engine_of(recipe: Recipe) -> Engine:
    model = start_model(recipe)
    set_computation(model, recipe)
    engine = build_engine(recipe, model.train(), "all", 2)
    set_halting(engine.module.config, recipe.train.phases[1])
    return engine


def step(engine: Engine, recipe: Recipe, number: int) -> float:
    """One optimizer step; its loss on this rank."""
    set_learning_rates(engine, learning_rates(recipe.train, 10))
    generator = torch.Generator().manual_seed(2 * number + dist.get_rank())
    tokens = torch.randint(1, 300, (2, 33), generator=generator)
    output = engine(input_ids=tokens[:, :-1], shift_labels=tokens[:, 1:], ponder_weight=0.1, ponder_fraction=0.3)
    engine.backward(output.loss)
    engine.step()
    assert output.loss is not None
    return output.loss.item()


def told(attempt: Callable[[], Any]) -> str | None:
    """The `WorldError` that comes of an attempt."""
    try:
        attempt()
    except WorldError as error:
        return str(error)
    return None


def state_of(recipe: Recipe, stage: int, fingerprint: LogitsFingerprint | None) -> TrainerState:
    return TrainerState(
        step=2,
        save_id=uuid.uuid4().hex,
        rows=8,
        tokens=256,
        phase="halting",
        trained="all",
        seed=7,
        recipe=recipe.resolved(),
        recipe_hash=recipe.hash(),
        manifest_hash="0",
        mlflow_run_id=None,
        world_size=2,
        zero_stage=stage,
        precision=recipe.train.precision,
        versions={},
        fingerprint=fingerprint,
    )


def written_after(event: threading.Event, files: CheckpointFiles) -> CheckpointFiles:
    """The same, whose writing waits for `event`."""
    write = files.write

    def wait_and_write() -> dict[str, MarkedFile]:
        assert event.wait(60)
        return write()

    files.write = wait_and_write
    return files


def begin(
    saves: SavesInFlight,
    engine: Engine,
    folder: Path,
    state: TrainerState,
    completed: Callable[[Completed], None] = lambda completed: None,
    change: Callable[[CheckpointFiles], CheckpointFiles] = lambda files: files,
) -> None:
    """Begin a save, with frozen weights; collective."""
    frozen = {"some.weight": torch.ones(3)}
    saves.begin(
        time.monotonic(),
        lambda memory: change(take_checkpoint(engine, folder, state, frozen, memory)),
        completed,
    )


def run(stage: int, precision: str, folder: Path, waiting: SavesInFlight, beside: SavesInFlight) -> dict[str, Any]:
    """What came of one setting; collective."""
    content = tiny_recipe("saved", Path("unused"))
    content["train"] |= {"strategy": f"zero{stage}", "precision": precision, "global_batch": 4}
    recipe = parse_recipe(content, "test")
    found: dict[str, Any] = {"stage": stage, "precision": precision}

    engine = engine_of(recipe)
    found["undisturbed"] = [step(engine, recipe, number) for number in range(4)]
    engine.destroy()

    engine = engine_of(recipe)
    losses = [step(engine, recipe, number) for number in range(2)]
    torch.manual_seed(5)
    generator = torch.get_rng_state()
    saved = take_fingerprint(engine, recipe, 2, stage)
    found["again_the_same"] = take_fingerprint(engine, recipe, 2, stage) == saved
    found["left_as_it_was"] = [
        engine.module.training,
        engine.module.config.halting == "masked",
        torch.equal(torch.get_rng_state(), generator),
    ]
    begin(waiting, engine, folder / "waiting", state_of(recipe, stage, saved))
    done: list[Completed] = []
    trained = threading.Event()
    begin(beside, engine, folder, state_of(recipe, stage, saved), done.append, partial(written_after, trained))
    losses += [step(engine, recipe, number) for number in (2, 3)]
    found["complete_while_training"] = has_checkpoint(folder)
    trained.set()
    beside.wait()
    found["losses"] = losses
    trained_on = take_fingerprint(engine, recipe, 2, stage)
    engine.destroy()
    found["trained_on"] = other_network(saved, trained_on)

    checkpoint = open_checkpoint(folder / "step-00000002")
    found["wrong_files"] = wrong_files(checkpoint.path, checkpoint.marker)
    found["marked"] = {name: bool(file.sha256) for name, file in checkpoint.marker.files.items()}
    found["frozen"] = FROZEN_FILE in checkpoint.marker.files
    found["size"] = [done[0].size if done else None, checkpoint.marker.size]
    found["of_waiting"] = open_checkpoint(folder / "waiting" / checkpoint.name).marker.model_dump()["files"]
    found["files"] = checkpoint.marker.model_dump()["files"]
    engine = engine_of(recipe)
    found["before_loading"] = other_network(saved, take_fingerprint(engine, recipe, 2, stage))
    engine.load_checkpoint(str(folder), tag=checkpoint.name)
    stored = checkpoint.state.fingerprint
    assert stored is not None
    loaded = take_fingerprint(engine, recipe, 2, stage)
    found["loaded"] = other_network(stored, loaded)
    found["to_the_last_digit"] = stored == loaded
    check_fingerprint(engine, checkpoint, loaded)
    of_another = checkpoint.state.model_copy(update={"fingerprint": trained_on})
    found["refused"] = told(lambda: check_fingerprint(engine, replace(checkpoint, state=of_another), loaded))
    found["resumed"] = [step(engine, recipe, number) for number in (2, 3)]
    if stage < 3:
        engine.module.lm_head.weight.data[0, 0] = torch.nan
        found["not_finite"] = told(lambda: take_fingerprint(engine, recipe, 2, stage))
    engine.destroy()
    found["fingerprint"] = stored.model_dump()
    return found


def main() -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    init_distributed(parse_recipe(tiny_recipe("saved", Path("unused")), "test"))
    folder = Path(sys.argv[2])
    with SavesInFlight(background=False) as waiting, SavesInFlight(background=True) as beside:
        found = [
            run(stage, precision, folder / f"{stage}-{precision}", waiting, beside) for stage, precision in SETTINGS
        ]
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(found))
    dist.barrier()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)
