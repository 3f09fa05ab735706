from __future__ import annotations

import pytest
import torch

from launch.plan.network import planned_config
from launch.plan.parameters import architecture_parameters, count_parameters, largest_parameter
from launch.plan.pythia import PYTHIA, pythia_by_name
from pipeline.model import AdaPonderConfig, AdaPonderForCausalLM
from pipeline.recipe_reader import read_recipe


def by_part(config: AdaPonderConfig) -> tuple[dict[str, int], int]:
    """Parameters of the real network, and the largest of its weights."""
    with torch.device("meta"):
        model = AdaPonderForCausalLM(config)
    found = {"backbone": 0, "embeddings": 0, "head": 0, "gates": 0}
    starts = {
        "gpt_neox.embed_in.": "embeddings",
        "gpt_neox.pause_in.": "embeddings",
        "lm_head.": "head",
        "gates.": "gates",
    }
    for name, weight in model.named_parameters():
        part = next((part for start, part in starts.items() if name.startswith(start)), "backbone")
        found[part] += weight.numel()
    return found | {"total": sum(found.values())}, max(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize("size", ["70M", "160M", "410M", "1B", "1.4B", "2.8B"])
def test_counts_are_those_of_the_built_networks(size):
    recipe = read_recipe("quickstart", [f"model.backbone=EleutherAI/pythia-{size.lower()}"])
    config, source = planned_config(recipe)
    found, largest = by_part(config)
    assert count_parameters(config).as_dict() == found
    assert largest_parameter(config) == largest
    assert source == f"Pythia-{size}'s, by its name"
    assert architecture_parameters(PYTHIA[size]).as_dict() == found


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model.max_passes=1"],
        ["model.gate_on_last_pass=true"],
        ["model.shared_gate=true", "model.gate_on_last_pass=true"],
        ["model.max_passes=1", "model.pause_tokens=1"],
        ["model.backbone.intermediate_size=300", "model.backbone.vocab_size=4097"],
        ["model.backbone.vocab_size=100", "model.backbone.intermediate_size=64", "tokenize.tokenizer=gpt2"],
    ],
)
def test_other_networks_are_counted_too(overrides):
    config, source = planned_config(read_recipe("quickstart", overrides))
    found, largest = by_part(config)
    assert count_parameters(config).as_dict() == found
    assert largest_parameter(config) == largest
    assert source == "the recipe's numbers"


def test_without_bias_in_attention():
    config = AdaPonderConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    config.attention_bias = False
    assert count_parameters(config).as_dict() == by_part(config)[0]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("EleutherAI/pythia-1.4b", "1.4B"),
        ("./ponderlm-pythia-2.8b", "2.8B"),
        ("/models/Pythia-410M-deduped/", "410M"),
        ("EleutherAI/pythia-14m", None),
        ("EleutherAI/pythia-1.4b-chat", None),
        ("pythia", None),
    ],
)
def test_names_of_pythia_s_sizes(name, size):
    known = pythia_by_name(name)
    assert (known and known[0]) == size
