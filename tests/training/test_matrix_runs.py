"""ZeRO 0 to 3, fp32 and bf16, with and without checkpointing of activations: resumed, each ends as if unbroken."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.checkpoint import load_model, open_checkpoint
from pipeline.errors import UserError
from pipeline.model import AdaPonderConfig, AdaPonderForCausalLM
from pipeline.recipe_reader import parse_recipe
from pipeline.training.checks import check_recipe
from tests.training.matrix_runs import CHECKPOINTING, REFUSED, SAVED_STEP, STEPS, recipe_of, settings

SETTINGS = list(settings())
LOSSES = ("train/loss", "train/ce_loss", "train/ponder_loss")
each_setting = pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: "-".join(map(str, setting)))


@pytest.fixture(scope="module")
def found(runs, shards, tmp_path_factory) -> dict[tuple[int, str, str], dict[str, Any]]:
    """All settings, in one child process a rank: a hang becomes a failure."""
    out = tmp_path_factory.mktemp("matrix") / "found.json"
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("--module", "tests.training.matrix_runs", str(out), str(runs.root), str(shards)),
    ]
    done = subprocess.run(command, env=runs.environment(), capture_output=True, text=True, timeout=290, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return {tuple(one["setting"]): one for one in json.loads(out.read_text())}


def largest_difference(one: list[dict], other: list[dict], *keys: str) -> float:
    assert [line["step"] for line in one] == [line["step"] for line in other] == list(range(1, STEPS + 1))
    return max(abs(a[key] - b[key]) for a, b in zip(one, other, strict=True) for key in keys)


@pytest.mark.slow
@each_setting
def test_a_resumed_run_matches_the_unbroken_one(found, setting):
    run = found[setting]
    assert run["started_at"] == [0, SAVED_STEP]
    assert run["unbroken"][-1]["train/ce_loss"] < run["unbroken"][0]["train/ce_loss"] - 0.5
    assert 1 < run["unbroken"][-1]["depth/mean"] < 3, "some tokens were meant to halt"
    # bf16 too: nothing is rounded by saving and loading.
    assert largest_difference(run["unbroken"], run["resumed"], *LOSSES, "depth/mean", "train/lr") < 1e-6


@pytest.mark.slow
@each_setting
def test_every_stage_trains_the_same_within_its_precision(found, setting):
    plain = found[0, "fp32", "none"]["unbroken"]
    exact = 1e-6 if setting[1] == "fp32" else 2e-2
    assert largest_difference(plain, found[setting]["resumed"], *LOSSES) < exact
    if setting[1] == "fp32":  # rounding to bf16 moves a token over the threshold
        assert largest_difference(plain, found[setting]["resumed"], "depth/mean") < 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_checkpoints_of_every_stage_hold_the_same_network(found, runs, stage):
    one, other = (
        open_checkpoint(runs.root / f"matrix-{number}-fp32-none" / "checkpoints" / f"step-{STEPS:08d}")
        for number in (1, stage)
    )
    tokens = torch.arange(64).reshape(2, 32)
    # Outputs, not weights: a bias of keys has no gradient but rounding, which AdamW blows up to full steps.
    logits = load_model(one)(tokens).logits
    torch.testing.assert_close(load_model(other)(tokens).logits, logits, atol=1e-4, rtol=0)
    # Built and filled by hand: nothing that is in no checkpoint (RoPE's frequencies) may be missing after loading.
    plain = AdaPonderForCausalLM(AdaPonderConfig.from_pretrained(one.path)).eval()
    plain.load_state_dict(load_model(one).state_dict())
    torch.testing.assert_close(plain(tokens).logits, logits, atol=1e-5, rtol=0)


def test_bf16_without_zero_is_refused():
    assert len(SETTINGS) == 14 and not [setting for setting in SETTINGS if setting[:2] == REFUSED]
    for checkpointing in CHECKPOINTING:
        recipe = parse_recipe(recipe_of(*REFUSED, checkpointing, Path("unused")), "test")
        with pytest.raises(UserError, match="zero0 with train.precision bf16: .* take zero1, or fp32"):
            check_recipe(recipe, 2)
