from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.recipe_reader import read_recipe
from pipeline.training.model_start import start_model
from pipeline.training.throughput import peak_flops, peak_of, training_flops_per_token


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


@pytest.mark.parametrize("passes", [1, 3])
def test_the_count_agrees_with_torch_s(passes):
    recipe = read_recipe("quickstart", [f"model.max_passes={passes}"])
    model = start_model(recipe).train()
    model.set_attn_implementation("eager")  # the counter knows plain matrix products
    tokens = torch.randint(0, 4096, (2, 129))
    with FlopCounterMode(display=False) as counter:
        model(tokens[:, :-1], shift_labels=tokens[:, 1:]).loss.backward()
    # Causal attention is counted as the half that is needed; the counter sees the whole square.
    config = model.config
    square = 2 * 3 * passes * config.num_hidden_layers * 128 * config.hidden_size
    assert counter.get_total_flops() / 256 == pytest.approx(training_flops_per_token(config, 128) + square, rel=0.02)
