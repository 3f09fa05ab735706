from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import ds_configs
from pipeline.errors import UserError
from pipeline.recipe_reader import read_recipe
from pipeline.training.strategy import (
    check_strategy,
    engine_config,
    offload_device,
    read_strategy,
    uses_cpu_adam,
    zero_stage,
)

SHIPPED = sorted(path.stem for path in Path(ds_configs.__file__).parent.glob("*.json"))


def recipe_with(*overrides: str):
    return read_recipe("quickstart", overrides)


def test_batch_precision_and_clipping_come_from_the_recipe():
    recipe = recipe_with("train.precision=bf16", "train.strategy=zero2", "train.grad_accum_dtype=fp32")
    config = engine_config(recipe, world_size=2)
    assert config["zero_optimization"]["stage"] == 2
    assert config["bf16"] == {"enabled": True}
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}
    assert config["gradient_clipping"] == 1.0
    assert config["train_batch_size"] == 16
    assert config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"] * 2 == 16


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_gradients_are_added_up_in_the_training_s_precision_where_nothing_else_is_said(precision):
    assert engine_config(recipe_with(f"train.precision={precision}"), 2)["data_types"]["grad_accum_dtype"] == precision


def test_bf16_sums_of_an_fp32_training_are_refused():
    with pytest.raises(UserError, match="train.grad_accum_dtype bf16 is for train.precision bf16"):
        recipe_with("train.grad_accum_dtype=bf16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a CPU only")
def test_on_a_cpu_zero_1_leaves_gradients_where_they_are_unless_the_strategy_says_otherwise(tmp_path):
    contiguous = {}
    for name in ("zero0", "zero1", "zero2", "zero3"):
        config = engine_config(recipe_with(f"train.strategy={name}"), 2)
        contiguous[name] = config["zero_optimization"].get("contiguous_gradients")
    assert contiguous == {"zero0": None, "zero1": False, "zero2": None, "zero3": None}
    own = tmp_path / "own.json"
    own.write_text(json.dumps({"zero_optimization": {"stage": 1, "contiguous_gradients": True}}))
    config = engine_config(recipe_with(f"train.strategy={own}"), 2)
    assert config["zero_optimization"] == {"stage": 1, "contiguous_gradients": True}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_strategies_are_what_their_names_say(name):
    strategy = read_strategy(name)
    assert set(strategy) == {"zero_optimization"}
    assert zero_stage(strategy) == int(name.removeprefix("zero")[0])
    assert offload_device(strategy) == {"offload": "cpu", "nvme": "nvme"}.get(name.partition("-")[2], "none")
    assert uses_cpu_adam(strategy) == ("-" in name)
    # Reduction beside the backward pass wherever there is any to overlap, in buckets that Pythia-70M fills.
    assert strategy["zero_optimization"].get("overlap_comm", False) == (zero_stage(strategy) > 0)
    assert strategy["zero_optimization"].get("reduce_bucket_size", 0) == (5e7 if zero_stage(strategy) else 0)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"data_types": {"grad_accum_dtype": "fp32"}}, "data_types, which the recipe decides"),
        ({"bf16": {"enabled": True}, "optimizer": {}}, "bf16, optimizer, which the recipe decides"),
        (
            {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": "/nvme"}}},
            "zero_optimization.offload_optimizer.nvme_path, which the recipe decides",
        ),
    ],
)
def test_what_stands_in_recipe_and_strategy_is_refused(tmp_path, content, told):
    (tmp_path / "mine.json").write_text(json.dumps({"zero_optimization": {"stage": 1}, **content}))
    with pytest.raises(UserError, match=told):
        check_strategy(recipe_with(f"train.strategy={tmp_path / 'mine.json'}"))


def test_states_on_nvme_need_a_folder_there(tmp_path):
    with pytest.raises(
        UserError, match="zero3-nvme keeps states on an NVMe disk: name a folder there, train.nvme_path"
    ):
        check_strategy(recipe_with("train.strategy=zero3-nvme"))
    with pytest.raises(UserError, match="/no/such/disk: no such folder"):
        check_strategy(recipe_with("train.strategy=zero3-nvme", "train.nvme_path=/no/such/disk"))
    config = engine_config(recipe_with("train.strategy=zero3-nvme", f"train.nvme_path={tmp_path}"), 2)
    assert config["zero_optimization"]["offload_optimizer"] == {"device": "nvme", "nvme_path": str(tmp_path)}
    assert "nvme_path" not in config["zero_optimization"]["offload_param"]


def test_adamw_on_the_cpu_needs_a_compiler_or_torch_s(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "/no/such/compiler")
    with pytest.raises(UserError, match="/no/such/compiler is not found.*zero_force_ds_cpu_optimizer"):
        check_strategy(recipe_with("train.strategy=zero2-offload"))
    own = {**read_strategy("zero2-offload"), "zero_force_ds_cpu_optimizer": False}
    (tmp_path / "mine.json").write_text(json.dumps(own))
    assert check_strategy(recipe_with(f"train.strategy={tmp_path / 'mine.json'}")) == 2
