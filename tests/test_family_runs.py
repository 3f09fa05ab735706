"""Members of the family through the whole pipeline: trained, evaluated, released, and read from the release."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.evaluation.metrics import Metrics

LOOP = {"gating": "open", "feedback": "hidden_state"}
PAUSE = {"max_passes": 1, "pause_tokens": 3}
PONDERLM = {"gating": "open"}
SHARED = {"shared_gate": True}


@pytest.mark.slow
@pytest.mark.parametrize("member", [LOOP, PAUSE, PONDERLM, SHARED], ids=["loop", "pause", "ponderlm", "shared"])
def test_a_member_is_trained_evaluated_and_released(member: dict[str, Any], runs, recipe) -> None:
    recipe["model"] |= member
    # ZeRO-3 gathers a weight where its own module reads it: the pauses, and one gate after several passes.
    recipe["train"]["strategy"] = "zero3" if member in (PAUSE, SHARED) else "zero1"
    recipe["model"]["backbone"]["max_position_embeddings"] = 128
    recipe["train"]["phases"][0]["steps"] = recipe["train"]["phases"][1]["steps"] = 4
    recipe["train"]["phases"][1]["halting"] = member is SHARED
    recipe["train"]["phases"][1]["ramp_steps"] = 2
    lines = runs.train(recipe)
    assert len(lines) == 8
    assert lines[-1]["train/ce_loss"] < lines[0]["train/ce_loss"]
    gates = {name for name in lines[-1] if name.startswith("gates/") and name.endswith("/mean")}
    assert gates == ({"gates/pass_1/mean", "gates/pass_2/mean"} if member is SHARED else set())
    if member is not SHARED:
        assert all(line["train/ponder_loss"] == 0 for line in lines)
        assert all(line["depth/mean"] == recipe["model"]["max_passes"] for line in lines)
        assert lines[-1]["train/loss"] == lines[-1]["train/ce_loss"]
    assert not [event for event in runs.events(recipe["name"]) if event["kind"] == "gate_alarm"]

    for stage in ("evaluate", "release"):
        done = runs.adaponder(stage, recipe)
        assert done.returncode == 0, done.stdout + done.stderr
    folder = runs.root / recipe["name"]
    found = next(folder.glob("evaluation/**/metrics.json"))
    metrics = Metrics.model_validate_json(found.read_text())
    assert metrics.overall.loss < lines[0]["train/ce_loss"]
    if member is not SHARED:
        assert metrics.overall.mean_depth == recipe["model"]["max_passes"]

    released = next(folder.glob("release*/**/config.json")).parent
    described = json.loads((released / "config.json").read_text())
    assert {name: described[name] for name in member} == member
    network: Any = AutoModelForCausalLM.from_pretrained(released, trust_remote_code=True)
    tokens = torch.randint(1, 300, (1, 8))
    output = network(tokens)
    assert output.logits.shape == (1, 8, 304)
    assert output.gates.shape == (1, 8, 2 if member is SHARED else 0)
