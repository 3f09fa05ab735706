from __future__ import annotations

import math

import pytest
import torch

from pipeline.recipe_reader import read_recipe
from pipeline.training.model_start import start_model
from pipeline.training.step_metrics import GATE_EDGES, StepSums


@pytest.mark.parametrize("shared", ["false", "true"])
def test_sums_over_micro_batches_are_means_over_everything(shared):
    recipe = read_recipe("quickstart", ["model.halt_threshold=0.9525", f"model.shared_gate={shared}"])
    model = start_model(recipe).train()
    generator = torch.Generator().manual_seed(0)
    outputs = []
    sums = StepSums(model.config, torch.device("cpu"))
    for _ in range(3):
        tokens = torch.randint(0, 4096, (2, 17), generator=generator)
        output = model(tokens[:, :-1], shift_labels=tokens[:, 1:], ponder_weight=0.1, ponder_fraction=0.5)
        sums.add(output)
        outputs.append(output)
    metrics = sums.metrics()
    mean_of = {
        "train/loss": torch.stack([output.loss for output in outputs]).mean(),
        "train/ce_loss": torch.stack([output.ce_loss for output in outputs]).mean(),
        "train/ponder_loss": torch.stack([output.ponder_loss for output in outputs]).mean(),
        "depth/mean": torch.cat([output.depths for output in outputs]).double().mean(),
    }
    gates = torch.cat([output.gates for output in outputs])
    depths = torch.cat([output.depths for output in outputs])
    for i in range(3):
        mean_of[f"gates/pass_{i + 1}/mean"] = gates[..., i].mean()
        mean_of[f"gates/pass_{i + 1}/from_0.9"] = (gates[..., i] >= 0.9).double().mean()
    for i in range(4):
        mean_of[f"depth/keep_ratio_pass_{i + 1}"] = (depths > i).double().mean()
    for name, expected in mean_of.items():
        assert math.isclose(metrics[name], expected.item(), rel_tol=1e-5), name
    assert 1 < metrics["depth/mean"] < 4, "the threshold was meant to halt some tokens"
    assert math.isclose(metrics["train/perplexity"], math.exp(metrics["train/ce_loss"]))
    for i in range(3):
        histogram = [value for name, value in metrics.items() if name.startswith(f"gates/pass_{i + 1}/")]
        assert math.isclose(sum(histogram) - metrics[f"gates/pass_{i + 1}/mean"], 1.0, rel_tol=1e-6)
        assert len(histogram) == len(GATE_EDGES) + 2


@pytest.mark.parametrize(
    ("overrides", "depth"),
    [
        (["model.max_passes=1"], 1),
        (["model.max_passes=1", "model.gate_on_last_pass=true"], 1),
        (["model.max_passes=1", "model.pause_tokens=1"], 1),
        (["model.gating=open", "train.phases.1.halting=false"], 4),
        (["model.gating=open", "model.feedback=hidden_state", "train.phases.1.halting=false"], 4),
    ],
    ids=str,
)
def test_networks_without_gates(overrides, depth):
    model = start_model(read_recipe("quickstart", overrides)).train()
    tokens = torch.arange(34).reshape(2, 17)
    sums = StepSums(model.config, torch.device("cpu"))
    sums.add(model(tokens[:, :-1], shift_labels=tokens[:, 1:]))
    metrics = sums.metrics()
    assert metrics["depth/mean"] == depth
    assert metrics["train/ponder_loss"] == 0
    assert not any(name.startswith("gates/") for name in metrics)
