from __future__ import annotations

import pytest
import torch

from pipeline.recipe_reader import read_recipe
from pipeline.training.engine import (
    frozen_weights,
    parameter_groups,
    set_halting,
    set_learning_rates,
    set_optimizer_settings,
)
from pipeline.training.model_start import start_model
from pipeline.training.phases import LearningRates


@pytest.fixture(scope="module")
def model():
    return start_model(read_recipe("quickstart"))


def test_every_parameter_is_in_one_group_and_only_matrices_decay(model):
    groups = parameter_groups(model, read_recipe("quickstart").train.optimizer)
    grouped = [parameter for group in groups for parameter in group["params"]]
    assert {id(parameter) for parameter in grouped} == {id(parameter) for parameter in model.parameters()}
    assert len(grouped) == len(list(model.parameters()))
    assert {group["name"]: group["weight_decay"] for group in groups} == {
        "backbone_decay": 0.1,
        "backbone_no_decay": 0.0,
        "gates_decay": 0.1,
        "gates_no_decay": 0.0,
    }
    for group in groups:
        assert all((parameter.ndim >= 2) == (group["weight_decay"] > 0) for parameter in group["params"])


def test_frozen_parameters_are_in_no_group(model):
    recipe = read_recipe("quickstart")
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith("gates.")
    try:
        names = [group["name"] for group in parameter_groups(model, recipe.train.optimizer)]
    finally:
        model.requires_grad_(True)
    assert names == ["gates_decay", "gates_no_decay"]


def test_the_recipe_s_settings_replace_a_checkpoint_s():
    class Loaded:
        optimizer = torch.optim.AdamW(
            [
                {"params": [torch.ones(2, 2)], "name": "gates_decay", "weight_decay": 0.9},
                {"params": [torch.ones(2)], "name": "backbone_no_decay", "weight_decay": 0.9},
            ]
        )

    settings = read_recipe("quickstart", ["train.optimizer.beta2=0.5"])
    set_optimizer_settings(Loaded, settings.train.optimizer)  # type: ignore[arg-type] - it has what is used
    set_learning_rates(Loaded, LearningRates(backbone=0.5, gates=0.25))  # type: ignore[arg-type]
    gates, backbone = Loaded.optimizer.param_groups
    assert (gates["weight_decay"], gates["lr"], gates["betas"]) == (0.1, 0.25, (0.9, 0.5))
    assert (backbone["weight_decay"], backbone["lr"], backbone["betas"]) == (0.0, 0.5, (0.9, 0.5))


def test_frozen_weights_are_copied_only_where_they_would_be_rounded(model):
    bf16 = read_recipe("quickstart", ["train.precision=bf16"])
    assert frozen_weights(bf16, model, "all") == {}
    assert frozen_weights(read_recipe("quickstart"), model, "gates") == {}
    frozen = frozen_weights(bf16, model, "gates")
    assert set(frozen) == {name for name, _ in model.named_parameters() if not name.startswith("gates.")}
    assert all(weight.dtype == torch.float32 for weight in frozen.values())
    by_pattern = frozen_weights(bf16, model, "gates.* gpt_neox.layers.[12].*")
    assert set(by_pattern) == {name for name in frozen if ".layers.1." not in name and ".layers.2." not in name}


def test_a_phase_halts_by_masks_or_by_skipping(model):
    pondering, halting = read_recipe("quickstart").train.phases
    for phase, skip, expected in (
        (pondering, False, "none"),
        (pondering, True, "none"),
        (halting, False, "masked"),
        (halting, True, "skip"),
        (halting, False, "masked"),
    ):
        set_halting(model.config, phase, skip)
        assert model.config.halting == expected
