"""A model starts from any GPT-NeoX checkpoint and from its own; a checkpoint that does not fit is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from pipeline.model import AdaPonderForCausalLM
from tests.model.tiny_adaponder import halting_config, random_model, random_tokens, tiny_config

TOKENS = random_tokens(2, 9, seed=50)
SHAPES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


@pytest.fixture
def stock_folder(tmp_path: Path) -> Path:
    torch.manual_seed(50)
    described = {name: getattr(tiny_config(), name) for name in (*SHAPES, "rope_parameters")}
    GPTNeoXForCausalLM(GPTNeoXConfig(**described)).save_pretrained(tmp_path / "stock")
    return tmp_path / "stock"


@pytest.fixture
def own_folder(tmp_path: Path) -> Path:
    random_model(halting_config(max_passes=3), seed=51, dtype=torch.float32).save_pretrained(tmp_path / "own")
    return tmp_path / "own"


def rewrite_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})


def test_a_stock_checkpoint_keeps_its_function(stock_folder: Path) -> None:
    stock = GPTNeoXForCausalLM.from_pretrained(stock_folder)
    model = AdaPonderForCausalLM.from_backbone(str(stock_folder), max_passes=1)
    assert torch.equal(model(TOKENS).logits, stock(TOKENS).logits)


def test_gates_a_stock_checkpoint_lacks_are_initialised(stock_folder: Path) -> None:
    weights = GPTNeoXForCausalLM.from_pretrained(stock_folder).state_dict()
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(AdaPonderForCausalLM.from_backbone(str(stock_folder), max_passes=3, gate_bias=-4.0))
    started = models[0].state_dict()
    for name, value in weights.items():
        assert torch.equal(started[name], value), name
    assert started["gates.1.logit.bias"].tolist() == [-4.0]
    assert 0 < started["gates.1.dense_h_to_4h.weight"].abs().max() <= 3 * (2 / (5 * 16)) ** 0.5
    again = models[1].state_dict()
    assert all(torch.equal(started[name], again[name]) for name in started)


def test_a_closed_gate_is_nearly_the_stock_network(stock_folder: Path) -> None:
    stock = AdaPonderForCausalLM.from_backbone(str(stock_folder), max_passes=1)
    closed = AdaPonderForCausalLM.from_backbone(str(stock_folder), gate_bias=-12.0, halting="none")
    torch.testing.assert_close(closed(TOKENS).logits, stock(TOKENS).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("head", ["lm_head", "embed_out"])
def test_a_stock_checkpoint_may_be_old_or_new(stock_folder: Path, head: str) -> None:
    """An old one names its head embed_out and carries the causal mask and the rotary frequencies as weights."""
    before = AdaPonderForCausalLM.from_backbone(str(stock_folder), max_passes=1)(TOKENS).logits

    def as_it_was(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        (stored,) = [name for name in weights if name in ("lm_head.weight", "embed_out.weight")]
        weights[f"{head}.weight"] = weights.pop(stored)
        for layer in range(2 if head == "embed_out" else 0):
            name = f"gpt_neox.layers.{layer}.attention"
            weights[f"{name}.bias"] = torch.ones(1, 1, 32, 32, dtype=torch.bool).tril()
            weights[f"{name}.masked_bias"] = torch.tensor(-1e9)
            weights[f"{name}.rotary_emb.inv_freq"] = torch.ones(2)
        return weights

    rewrite_weights(stock_folder, as_it_was)
    model = AdaPonderForCausalLM.from_backbone(str(stock_folder), max_passes=1)
    assert torch.equal(model(TOKENS).logits, before)
    model.save_pretrained(stock_folder.parent / "saved")
    assert "lm_head.weight" in load_file(stock_folder.parent / "saved" / "model.safetensors")


def test_weights_come_in_the_precision_asked_for(stock_folder: Path) -> None:
    GPTNeoXForCausalLM.from_pretrained(stock_folder, dtype=torch.float16).save_pretrained(stock_folder)
    for dtype in (torch.float32, torch.bfloat16):
        model = AdaPonderForCausalLM.from_backbone(str(stock_folder), dtype=dtype)
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert AdaPonderForCausalLM.from_backbone(str(stock_folder)).dtype == torch.float32


def test_its_own_folder_comes_back_as_it_was(own_folder: Path) -> None:
    model = random_model(halting_config(max_passes=3), seed=51, dtype=torch.float32)
    loaded = AdaPonderForCausalLM.from_backbone(str(own_folder))
    assert loaded.config.max_passes == 3
    assert loaded.config.halt_threshold == model.config.halt_threshold
    one, two = model(TOKENS, labels=TOKENS), loaded(TOKENS, labels=TOKENS)
    weights = loaded.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(two.logits, one.logits)
    torch.testing.assert_close(two.gates, one.gates)
    torch.testing.assert_close(two.loss, one.loss)


@pytest.mark.parametrize(
    ("fields", "kept_gates", "all_gates"),
    [({"max_passes": 5}, 2, 4), ({"max_passes": 2}, 1, 1), ({"gating": "open"}, 0, 0), ({"halting": "none"}, 2, 2)],
)
def test_given_fields_override_its_own(
    own_folder: Path, fields: dict[str, Any], kept_gates: int, all_gates: int
) -> None:
    weights = load_file(own_folder / "model.safetensors")
    model = AdaPonderForCausalLM.from_backbone(str(own_folder), **fields)
    for name, value in fields.items():
        assert getattr(model.config, name) == value
    assert len(model.gates) == all_gates
    started = model.state_dict()
    for i in range(all_gates):
        same = [torch.equal(started[name], weights[name]) for name in weights if name.startswith(f"gates.{i}.")]
        assert all(same) == (i < kept_gates or not same)
        if i >= kept_gates:
            assert started[f"gates.{i}.logit.bias"].tolist() == [model.config.gate_bias]


@pytest.mark.parametrize("kind", ["stock", "own"])
def test_pauses_that_a_checkpoint_lacks_are_initialised(stock_folder: Path, own_folder: Path, kind: str) -> None:
    folder = {"stock": stock_folder, "own": own_folder}[kind]
    model = AdaPonderForCausalLM.from_backbone(str(folder), max_passes=1, pause_tokens=3)
    pauses, tokens = (model.get_parameter(f"gpt_neox.{name}_in.weight") for name in ("pause", "embed"))
    assert pauses.shape == (3, 16)
    assert 0 < pauses.abs().max() <= 3 * (2 / (5 * 16)) ** 0.5
    assert torch.equal(tokens, load_file(folder / "model.safetensors")["gpt_neox.embed_in.weight"])
    model.save_pretrained(folder)
    again = AdaPonderForCausalLM.from_backbone(str(folder))
    assert torch.equal(again.get_parameter("gpt_neox.pause_in.weight"), pauses)
    without = AdaPonderForCausalLM.from_backbone(str(folder), pause_tokens=0)
    assert "gpt_neox.pause_in.weight" not in without.state_dict()
    with pytest.raises(ValueError, match="it has 3 pause tokens: pause_tokens is 2"):
        AdaPonderForCausalLM.from_backbone(str(folder), pause_tokens=2)


def test_a_shared_gate_is_the_first_of_separate_ones(own_folder: Path) -> None:
    weights = load_file(own_folder / "model.safetensors")
    model = AdaPonderForCausalLM.from_backbone(str(own_folder), shared_gate=True)
    assert len(model.gates) == 1
    first = model.get_parameter("gates.0.logit.weight")
    assert torch.equal(first, weights["gates.0.logit.weight"])
    model.save_pretrained(own_folder)
    apart = AdaPonderForCausalLM.from_backbone(str(own_folder), shared_gate=False)
    assert torch.equal(apart.get_parameter("gates.0.logit.weight"), first)
    assert len(apart.gates) == 2


@pytest.mark.parametrize(
    ("kind", "lost"),
    [
        ("stock", "gpt_neox.layers.1.mlp.dense_h_to_4h.bias"),
        ("own", "gpt_neox.layers.1.mlp.dense_h_to_4h.bias"),
        ("own", "gates.1.logit.bias"),
    ],
)
def test_a_missing_weight_is_named(stock_folder: Path, own_folder: Path, kind: str, lost: str) -> None:
    folder = {"stock": stock_folder, "own": own_folder}[kind]
    rewrite_weights(folder, lambda weights: {name: value for name, value in weights.items() if name != lost})
    with pytest.raises(ValueError, match=rf"missing {lost}; unexpected none") as caught:
        AdaPonderForCausalLM.from_backbone(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("extra", ["gpt_neox.layers.2.mlp.dense_h_to_4h.bias", "gates.2.logit.bias"])
@pytest.mark.parametrize("kind", ["stock", "own"])
def test_a_weight_too_many_is_named(stock_folder: Path, own_folder: Path, kind: str, extra: str) -> None:
    folder = {"stock": stock_folder, "own": own_folder}[kind]
    rewrite_weights(folder, lambda weights: {**weights, extra: torch.zeros(1)})
    with pytest.raises(ValueError, match=f"missing none; unexpected {extra}"):
        AdaPonderForCausalLM.from_backbone(str(folder))


def test_another_architecture_is_refused(stock_folder: Path) -> None:
    described = json.loads((stock_folder / "config.json").read_text())
    (stock_folder / "config.json").write_text(json.dumps({**described, "model_type": "llama"}))
    with pytest.raises(ValueError, match="model_type 'llama'"):
        AdaPonderForCausalLM.from_backbone(str(stock_folder))


@pytest.mark.parametrize("kind", ["stock", "own"])
def test_a_bad_value_is_refused(stock_folder: Path, own_folder: Path, kind: str) -> None:
    folder = {"stock": stock_folder, "own": own_folder}[kind]
    with pytest.raises(ValueError, match="halting is 'sometimes'"):
        AdaPonderForCausalLM.from_backbone(str(folder), halting="sometimes")


def test_a_field_of_the_backbone_is_refused(stock_folder: Path) -> None:
    with pytest.raises(ValueError, match="hidden_size"):
        AdaPonderForCausalLM.from_backbone(str(stock_folder), hidden_size=32)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json"):
        AdaPonderForCausalLM.from_backbone(str(tmp_path))
    with pytest.raises(OSError, match="elsewhere"):
        AdaPonderForCausalLM.from_backbone(str(tmp_path / "elsewhere"))


def test_a_network_from_scratch_takes_the_architecture_alone(stock_folder: Path) -> None:
    from_architecture = AdaPonderForCausalLM(tiny_config(max_passes=2))
    started = AdaPonderForCausalLM.from_backbone(str(stock_folder), max_passes=2)
    shapes = {name: value.shape for name, value in from_architecture.state_dict().items()}
    assert shapes == {name: value.shape for name, value in started.state_dict().items()}
