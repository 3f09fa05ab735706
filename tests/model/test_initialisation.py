"""The start from scratch: every weight drawn as PonderLM draws it, the gates as the configuration says."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.model import AdaPonderForCausalLM
from tests.model.tiny_adaponder import tiny_config

HIDDEN, LAYERS, PASSES = 64, 3, 4


@pytest.fixture(scope="module")
def model() -> AdaPonderForCausalLM:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return AdaPonderForCausalLM(
        tiny_config(
            vocab_size=500, hidden_size=HIDDEN, intermediate_size=256, num_hidden_layers=LAYERS, max_passes=PASSES
        )
    )


def test_matrices_are_truncated_normal(model: AdaPonderForCausalLM) -> None:
    std = math.sqrt(2 / (5 * HIDDEN))
    # A normal distribution cut at 3 standard deviations has 0.9866 of its standard deviation left.
    scaled_down = std / math.sqrt(2 * LAYERS * PASSES)
    seen = 0
    for name, weight in model.named_parameters():
        if weight.dim() != 2 or name.endswith("logit.weight"):
            continue
        residual = name.endswith(("attention.dense.weight", "mlp.dense_4h_to_h.weight"))
        expected = scaled_down if residual else std
        assert weight.std().item() == pytest.approx(0.9866 * expected, rel=0.05), name
        assert 2.5 * expected < weight.abs().max().item() <= 3 * expected, name
        seen += residual
    assert seen == 2 * LAYERS


def test_biases_norms_and_gates(model: AdaPonderForCausalLM) -> None:
    for name, parameter in model.named_parameters():
        if name.endswith("logit.bias"):
            assert parameter.tolist() == [model.config.gate_bias], name
        elif name.endswith("logit.weight"):
            assert parameter.std().item() == pytest.approx(model.config.gate_output_std, rel=0.2), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name


def test_a_gate_starts_at_its_bias(model: AdaPonderForCausalLM) -> None:
    output = model(torch.arange(30).unsqueeze(0))
    assert (output.gate_logits - model.config.gate_bias).abs().max() < 0.1
    assert (output.depths == PASSES).all()


def test_the_seed_decides_every_weight() -> None:
    weights = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        weights.append(AdaPonderForCausalLM(tiny_config()).state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0]["lm_head.weight"], weights[2]["lm_head.weight"])


def test_names_are_gpt_neoxs_with_the_gates_beside_them(model: AdaPonderForCausalLM) -> None:
    names = set(model.state_dict())
    assert {"gpt_neox.embed_in.weight", "gpt_neox.layers.2.attention.dense.bias", "lm_head.weight"} <= names
    beside = {name for name in names if not name.startswith(("gpt_neox.", "lm_head."))}
    assert beside == {
        f"gates.{i}.{layer}.{kind}"
        for i in range(PASSES - 1)
        for layer in ("dense_h_to_4h", "logit")
        for kind in ("weight", "bias")
    }
