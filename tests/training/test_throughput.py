from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.model import AdaPonderConfig
from pipeline.model.flops import mean_keys
from pipeline.recipe_reader import read_recipe
from pipeline.training.model_start import start_model
from pipeline.training.throughput import Throughput, depth_histogram, peak_flops, peak_of, training_flops_per_token


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA GB200", 2450e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA RTX A1000", None),
    ],
)
def test_chips_are_told_apart_by_whole_words(name, peak):
    assert peak_of(name) == peak


def test_no_cpu_has_a_known_peak():
    assert peak_flops(torch.device("cpu")) is None


@pytest.mark.parametrize(("passes", "frozen"), [(4, False), (1, False), (3, True)])
def test_the_count_agrees_with_torch_s(passes, frozen):
    torch.set_num_threads(1)
    recipe = read_recipe("quickstart", [f"model.max_passes={passes}"])
    model = start_model(recipe).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith("gates.") or not frozen
    model.set_attn_implementation("eager")  # the counter knows plain matrix products
    model.config.vocabulary_chunk_tokens = 0  # recomputed logits are no part of the model's work
    tokens = torch.randint(0, 4096, (1, 129))
    with FlopCounterMode(display=False) as counter:
        model(tokens[:, :-1], shift_labels=tokens[:, 1:]).loss.backward()
    # Causal attention is counted as the half that is needed; the counter sees the whole square.
    config = model.config
    products = 2 * (passes + 2 * (passes - frozen))
    square = 2 * products * config.num_hidden_layers * config.hidden_size * (128 - mean_keys(128))
    flops = training_flops_per_token(config, 128, frozen_backbone=frozen)
    assert counter.get_total_flops() / 128 == pytest.approx(flops + square, rel=0.001)


def test_halted_tokens_that_training_skips_are_no_work():
    config = AdaPonderConfig(vocab_size=4096, hidden_size=128, intermediate_size=512, num_hidden_layers=4)
    full = training_flops_per_token(config, 128)
    assert training_flops_per_token(config, 128, [0, 0, 0, 7]) == pytest.approx(full)
    gates = 6 * 3 * (4 * 128**2 + 4 * 128)
    single = 6 * (4 * (12 * 128**2 + 129 * 128) + 4096 * 128)
    assert training_flops_per_token(config, 128, [1, 0, 0, 0]) == pytest.approx(single + gates)


def test_what_is_reached_follows_the_depths_where_halted_tokens_are_skipped():
    # 1 in 4 tokens at each depth of 4.
    logged = {f"depth/keep_ratio_pass_{number}": share for number, share in ((1, 1.0), (2, 0.75), (3, 0.5), (4, 0.25))}
    assert depth_histogram(logged, 4) == [0.25] * 4

    def speed(*overrides: str, trained: str = "all") -> dict[str, float]:
        recipe = read_recipe("quickstart", list(overrides))
        config = start_model(recipe).config
        return Throughput(recipe, config, 128, 2, trained, torch.device("cpu")).metrics(0.5, logged)

    recipe = read_recipe("quickstart")
    tokens = recipe.train.global_batch * 128 / 0.5
    config = start_model(recipe).config
    full = speed("train.skip_halted=false")
    assert full["speed/tokens_per_second"] == tokens
    assert full["speed/tflops_per_rank"] * 2e12 == pytest.approx(tokens * training_flops_per_token(config, 128))
    skipped = speed("train.skip_halted=true")
    by_depth = training_flops_per_token(config, 128, [1, 1, 1, 1])
    assert skipped["speed/tflops_per_rank"] * 2e12 == pytest.approx(tokens * by_depth)
    assert skipped["speed/tflops_per_rank"] < full["speed/tflops_per_rank"]
    # Of a CPU no peak is known, and what a pattern leaves out of the backward pass is counted nowhere.
    assert "speed/mfu" not in full
    assert set(speed(trained="gates")) == set(full)
    assert set(speed(trained="gpt_neox.layers.1.*")) == {"speed/tokens_per_second"}
