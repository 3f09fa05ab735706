"""A loss that is no number at a step chosen before, on one of two ranks, under each policy of the recipe.

One row of the data holds a token whose embedding is not a number: the step that sees the row has no loss, and every
other step knows nothing of it. One pass, since the mixture of later ones takes up the embeddings of all tokens.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient
from transformers import AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

from pipeline.checkpoint import complete_checkpoints
from pipeline.data.manifest import manifest_hash, read_manifest
from pipeline.data.order import row_at
from pipeline.data.rows import RowReader
from pipeline.recipe_reader import parse_recipe
from pipeline.run_folder import RunFolder
from pipeline.tracking.server import tracking_uri
from pipeline.training.passed_over import read_passed_over
from tests.conftest import Runs, make_text_folder, tiny_recipe
from tokenization.stage import tokenize

pytestmark = pytest.mark.slow

STEPS = 14
BAD_STEP = 8
"""Steps of a checkpoint every five steps: behind the one of step 5."""
RARE = "JQXZ"
"""Letters of which each stands in one document, once."""


@pytest.fixture(scope="module")
def ruined(tmp_path_factory) -> tuple[Runs, dict[str, Any]]:
    """A folder of runs, and the recipe whose step `BAD_STEP` has no loss."""
    runs = Runs(tmp_path_factory.mktemp("ruined"))
    recipe = tiny_recipe("shards", make_text_folder(runs.root / "text", documents=60))
    for letter in RARE:
        (runs.root / "text" / f"{letter}.txt").write_text(f"gate halt depth layer {letter} gate halt depth layer.\n")
    shards = RunFolder(runs.root, parse_recipe(recipe, "shards"))
    tokenize(shards.recipe, shards, "adaponder tokenize")
    manifest, tokenizer = read_manifest(shards.shards), AutoTokenizer.from_pretrained(shards.shards / "tokenizer")
    with RowReader(shards.shards, manifest, "train") as reader:
        inputs = reader.read(range(reader.rows))[:, :-1]
    holding = {token: np.flatnonzero((inputs == token).any(axis=1)) for (token,) in map(tokenizer.encode, RARE)}
    bad_token, (bad_row,) = next(
        (token, rows) for token, rows in holding.items() if len(rows) == 1
    )  # not for validation

    torch.manual_seed(0)
    network: Any = GPTNeoXForCausalLM(GPTNeoXConfig(**recipe["model"]["backbone"]))
    network.get_input_embeddings().weight.data[bad_token] = torch.nan
    network.save_pretrained(runs.root / "backbone")
    recipe["model"] = {"start": "weights", "backbone": str(runs.root / "backbone"), "max_passes": 1}
    recipe["data"] = {"shards": str(shards.shards)}
    recipe["train"]["phases"] = [{"name": "only", "steps": STEPS, "halting": False}]
    recipe["seed"] = next(
        seed
        for seed in range(10_000)
        if bad_row in row_at(of_step(BAD_STEP), len(inputs), seed, manifest_hash(manifest))
        and bad_row not in row_at(np.arange(8 * (BAD_STEP - 1)), len(inputs), seed, manifest_hash(manifest))
    )
    return runs, recipe


def of_step(step: int) -> np.ndarray:
    """Positions of the step's rows, of a global batch of 8."""
    return np.arange(8 * (step - 1), 8 * step)


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def test_stop_keeps_what_was_saved_and_skip_goes_on_from_there(ruined):
    runs, recipe = ruined
    recipe = {**recipe, "name": "stopped-and-skipped"}
    folder = runs.root / recipe["name"]
    done = runs.adaponder("train", recipe, "--set", "train.log_every_steps=1000")
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"the loss of step {BAD_STEP} is nan: nothing after the last checkpoint is kept" in done.stderr
    assert done.stderr.count("\n") == 1
    assert [found.step for found in complete_checkpoints(folder / "checkpoints")] == [0, 5]
    assert '"status": "FAILED"' in (folder / "mlflow.json").read_text()

    done = runs.adaponder("train", recipe, "--set", "train.guards.non_finite_loss=skip")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "continuing from step-00000005" in done.stdout
    # Twice: before the training was stopped, too.
    skipped = [(event["step"], event["reason"]) for event in events(folder, "step_skipped")]
    assert skipped == [(BAD_STEP, "its gradients were not finite")] * 2
    assert [event["step"] for event in events(folder, "loss_not_finite")] == [BAD_STEP]
    lines = {line["step"]: line for line in runs.metrics(recipe["name"])}
    assert [step for step, line in lines.items() if not math.isfinite(line["train/loss"])] == [BAD_STEP]
    assert [line["train/skipped_steps"] for line in lines.values()] == [float(step >= BAD_STEP) for step in lines]
    assert list(lines)[-1] == STEPS
    weights = complete_checkpoints(folder / "checkpoints")[-1].path / "mp_rank_00_model_states.pt"
    stored = torch.load(weights, weights_only=False)["module"]
    assert {name for name, weight in stored.items() if not weight.isfinite().all()} == {"gpt_neox.embed_in.weight"}
    # MLflow has the step too, and those after it.
    client = MlflowClient(tracking_uri(runs.root))
    run_id = json.loads((folder / "mlflow.json").read_text())["runs"][-1]["run_id"]
    assert [metric.step for metric in client.get_metric_history(run_id, "train/loss")] == list(lines)


def test_roll_back_passes_over_the_rows_and_ends_by_itself(ruined):
    runs, recipe = ruined
    recipe = {**recipe, "name": "rolled-back"}
    folder = runs.root / recipe["name"]
    done = runs.adaponder("train", recipe, "--set", "train.guards.non_finite_loss=roll_back")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"rolled back to step 5, since the loss of step {BAD_STEP} is nan" in done.stdout
    assert [event["step"] for event in events(folder, "loss_not_finite")] == [BAD_STEP]
    passed = read_passed_over(folder)
    assert (passed.data_steps, passed.rolled_back_to) == (((5, BAD_STEP),), (5,))
    lines = runs.metrics(recipe["name"])
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert all(math.isfinite(line["train/loss"]) for line in lines)
    assert lines[-1]["train/skipped_steps"] == 0
