"""A training that is killed with -9 again and again, at random moments of every kind, ends as the unbroken one does.

Prints its seed and what each kill hit; CHAOS_SEED=... gives the same choices again (the moments depend on the machine
too).
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient

from pipeline.checkpoint import Checkpoint, checkpoint_name, complete_checkpoints, load_model
from pipeline.checkpoint_marker import wrong_files
from pipeline.data.batches import TrainingBatches
from pipeline.data.manifest import manifest_hash, read_manifest
from pipeline.data.order import row_at
from pipeline.data.rows import RowReader
from pipeline.recipe_reader import parse_recipe
from pipeline.run_folder import RunFolder
from pipeline.tracking.server import tracking_uri
from pipeline.training.engine import set_halting
from pipeline.training.phases import phase_at
from tests.conftest import Runs, make_text_folder, tiny_recipe
from tests.training.killed_attempts import (
    Attempt,
    after_a_save,
    at_the_start,
    in_a_step,
    while_loading,
    while_logging,
    while_saving,
    whole_lines,
)
from tokenization.stage import tokenize

pytestmark = pytest.mark.slow

STEPS = 400
PHASE_STEPS = 200
SAVED_EVERY, KEPT_EVERY = 20, 80
REPEATED = ("step", "train/", "depth/", "gates/")
"""How metrics are called that are the same whenever a step is taken; the others tell of time and machine."""


def chaos_recipe(name: str, root: Path) -> dict[str, Any]:
    """Steps of some 25 ms, saved often, with retention; all rows within one epoch."""
    recipe = {**tiny_recipe(name, root / "text"), "data": {"shards": str(root / "shards" / "shards")}}
    pondering, halting = recipe["train"]["phases"]
    recipe["train"] |= {
        "global_batch": 4,
        "checkpoint_every_steps": SAVED_EVERY,
        "keep_last": 2,
        "keep_every_steps": KEPT_EVERY,
        "phases": [pondering | {"steps": PHASE_STEPS}, halting | {"steps": STEPS - PHASE_STEPS, "ramp_steps": 50}],
    }
    return recipe


Moment = Callable[[Attempt, random.Random], None]
KILLS: list[tuple[Moment, bool]] = [
    *[(at_the_start, False)] * 2,
    *[(while_loading, False)] * 2,
    *[(in_a_step, False)] * 3,
    *[(while_saving, False)] * 3,
    *[(after_a_save, False)] * 1,
    *[(while_logging, False)] * 2,
    (in_a_step, True),
    (while_saving, True),
]
"""Moments, and whether one rank alone is killed."""


def verified(folder: Path) -> list[Checkpoint]:
    """All complete checkpoints, each file hashed."""
    found = complete_checkpoints(folder)
    assert [wrong for one in found for wrong in wrong_files(one.path, one.marker)] == []
    return found


@pytest.fixture(scope="module")
def chaos(tmp_path_factory) -> tuple[Runs, RunFolder]:
    """The run after all kills and a last start of the same command."""
    runs = Runs(tmp_path_factory.mktemp("chaos"))
    (runs.root / "temporary").mkdir()
    make_text_folder(runs.root / "text", documents=700)
    shards = RunFolder(runs.root, parse_recipe(tiny_recipe("shards", runs.root / "text"), "shards"))
    tokenize(shards.recipe, shards, "adaponder tokenize")
    recipe = chaos_recipe("chaos", runs.root)
    folder = RunFolder(runs.root, parse_recipe(recipe, "chaos"))
    seed = int(os.environ.get("CHAOS_SEED", os.getpid()))
    generator = random.Random(seed)
    kills = generator.sample(KILLS, len(KILLS))
    print(f"\nCHAOS_SEED={seed}")
    for number, (moment, one_rank) in enumerate(kills, 1):
        began = time.monotonic()
        attempt = Attempt(runs, recipe)
        moment(attempt, generator)
        rank = generator.randrange(2)
        attempt.kill_a_rank(rank) if one_rank else attempt.kill_all(generator)
        left = [path.name for path in attempt.checkpoints.glob("*.*") if path.suffix != ".py"]
        left += [attempt.store_journal.name] if attempt.store_journal.exists() else []
        who = f"rank {rank}" if one_rank else "all"
        print(
            f"{number}: {who} killed {moment.__name__.replace('_', ' ')}, {time.monotonic() - began:.1f} s after the "
            f"start, {attempt.taken()} steps on, at step {len(whole_lines(folder.metrics_file))}; left: {left}"
        )
        verified(folder.checkpoints)
    done = runs.adaponder("train", recipe)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "continuing from step-" in done.stdout
    return runs, folder


@pytest.fixture(scope="module")
def unbroken(chaos) -> RunFolder:
    """The same training, left alone."""
    runs, _ = chaos
    recipe = chaos_recipe("unbroken", runs.root)
    runs.train(recipe)
    return RunFolder(runs.root, parse_recipe(recipe, "unbroken"))


def metrics_of(folder: RunFolder) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in folder.metrics_file.read_text().splitlines()]
    return [{name: value for name, value in line.items() if name.startswith(REPEATED)} for line in lines]


def test_every_step_is_the_unbroken_runs(chaos, unbroken):
    _, killed = chaos
    found, reference = metrics_of(killed), metrics_of(unbroken)
    assert [line["step"] for line in found] == list(range(1, STEPS + 1))
    assert found == reference
    assert found[-1]["train/ce_loss"] < found[0]["train/ce_loss"] - 1.0 and found[-1]["depth/mean"] < 3
    last, same = (complete_checkpoints(folder.checkpoints)[-1] for folder in (killed, unbroken))
    weights = load_model(same).state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in load_model(last).state_dict().items())


def test_every_row_is_seen_once(chaos):
    """Rows are a function of the position, and each step's loss is that of the rows at its positions."""
    _, folder = chaos
    train, manifest = folder.recipe.train, read_manifest(folder.shards)
    digest = manifest_hash(manifest)
    rows = row_at(np.arange(STEPS * train.global_batch), manifest.train.rows, folder.recipe.seed, digest)
    assert len(set(rows.tolist())) == STEPS * train.global_batch
    lines = metrics_of(folder)
    assert [line["train/tokens"] for line in lines] == [step * 4 * 32 for step in range(1, STEPS + 1)]
    looked_at = [found for found in verified(folder.checkpoints) if found.step < STEPS]
    assert len(looked_at) >= 5
    with (
        RowReader(folder.open_shards(), manifest, "train") as reader,
        TrainingBatches(reader, folder.recipe.seed, digest, 0, 1, train.micro_batch, train.global_batch) as batches,
    ):
        for found in looked_at:
            assert (found.state.rows, found.state.tokens) == (found.step * 4, found.step * 4 * 32)
            model = load_model(found)
            set_halting(model.config, phase_at(train.phases, found.step)[0])
            with torch.no_grad():
                losses = [
                    model(input_ids=inputs, shift_labels=labels, ponder_weight=0.0, ponder_fraction=0.0).ce_loss.item()
                    for inputs, labels in batches.step(found.step)
                ]
            assert lines[found.step]["train/ce_loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)


def test_one_mlflow_run_has_every_step_once(chaos):
    runs, folder = chaos
    client = MlflowClient(tracking_uri(runs.root))
    everything = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    (run,) = [run for run in everything if run.info.run_name == folder.recipe.name]
    assert run.info.status == "FINISHED"
    for name in ("train/loss", "train/lr", "depth/mean"):
        logged = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]
        assert logged == [(line["step"], line[name]) for line in metrics_of(folder)]


def test_only_whole_checkpoints_and_no_leftovers(chaos):
    _, folder = chaos
    steps = [*range(0, STEPS, KEPT_EVERY), PHASE_STEPS, STEPS - SAVED_EVERY, STEPS]
    names = [checkpoint_name(step) for step in sorted(set(steps))]
    assert [found.name for found in verified(folder.checkpoints)] == names
    scripts = ["zero_to_fp32.py", "zero_to_torch.py"]  # DeepSpeed's own, put there by every save
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["latest", *names, *scripts]
    assert (folder.checkpoints / "latest").read_text() == names[-1] + "\n"
    ends = (".partial", ".part", ".removed", ".old", ".tmp", ".damaged")
    assert not [path for path in folder.path.rglob("*") if path.name.endswith(ends)]
