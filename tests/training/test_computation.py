"""What changes memory and time only: refused where the machine cannot, set on the network, told in words."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from pipeline.errors import UserError
from pipeline.model import AdaPonderConfig
from pipeline.recipe_reader import read_recipe
from pipeline.training.computation import check_computation, describe_computation, set_computation
from pipeline.training.model_start import model_config, start_model


def test_defaults_run_everywhere(monkeypatch):
    monkeypatch.setenv("PATH", "")
    check_computation(read_recipe("quickstart"), on_gpu=False)


def test_what_a_cpu_cannot_compute_is_refused_in_one_line(monkeypatch):
    for attention, told in (
        ("flex_attention", "flex_attention: torch cannot train with it on a CPU"),
        ("flash_attention_2", "flash_attention_2: it runs on a GPU only"),
    ):
        with pytest.raises(UserError, match=told) as raised:
            check_computation(read_recipe("quickstart", [f"train.attention={attention}"]), on_gpu=False)
        assert "\n" not in str(raised.value)
    compiled = read_recipe("quickstart", ["train.compile_layers=true"])
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="needs a C\\+\\+ compiler, and no-such-compiler is not found"):
        check_computation(compiled, on_gpu=False)


def test_torch_says_the_same_of_flex_attention():
    """Where this fails, torch has learned it, and the refusal can go."""
    query = torch.ones(1, 1, 16, 16, requires_grad=True)
    with pytest.raises(NotImplementedError, match="does not support backward on CPU"):
        flex_attention(query, query, query)


def test_flash_attention_needs_its_package_and_16_bits_on_a_gpu():
    recipe = read_recipe("quickstart", ["train.attention=flash_attention_2"])
    with pytest.raises(UserError, match="flash-attn is not installed"):
        check_computation(recipe, on_gpu=True, has_flash_attn=False)
    with pytest.raises(UserError, match="it computes in 16 bits"):
        check_computation(recipe, on_gpu=True, has_flash_attn=True)
    in_16_bits = read_recipe("quickstart", ["train.attention=flash_attention_2", "train.precision=bf16"])
    check_computation(in_16_bits, on_gpu=True, has_flash_attn=True)


def test_the_network_computes_as_the_recipe_says(tmp_path):
    recipe = read_recipe(
        "quickstart",
        [
            "model.mixture_top_k=7",
            "train.activation_checkpointing=mlp",
            "train.attention=eager",
            "train.vocabulary_chunk_tokens=33",
        ],
    )
    model = start_model(recipe)
    set_computation(model, recipe)
    assert model.config.mixture_top_k == 7
    assert model.config.vocabulary_chunk_tokens == 33
    assert model.config._attn_implementation == "eager"
    assert model.gpt_neox.checkpointing == "mlp"
    # A checkpoint demands no attention implementation of whoever loads it.
    model.config.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    assert "eager" not in text and "attn_implementation" not in text
    assert AdaPonderConfig.from_pretrained(tmp_path).mixture_top_k == 7


def test_the_next_attempt_s_recipe_holds_for_what_it_goes_on_with():
    first = read_recipe("quickstart", ["train.activation_checkpointing=layer", "train.attention=eager"])
    model = start_model(first)
    set_computation(model, first)
    again = copy.deepcopy(model)
    set_computation(again, read_recipe("quickstart"))
    assert (again.gpt_neox.checkpointing, again.config._attn_implementation) == ("activation", "sdpa")
    assert again.config.vocabulary_chunk_tokens == 256


def test_it_is_told_in_words():
    cpu = torch.device("cpu")
    assert describe_computation(read_recipe("quickstart"), cpu) == {
        "attention": "sdpa",
        "activation checkpointing": "activation",
        "cross entropy": "chunks of 256 tokens",
        "mixture": "whole vocabulary, chunks of 256 tokens",
        "halted tokens": "masked",
        "layers": "not compiled",
    }
    changed = read_recipe(
        "quickstart", ["model.mixture_top_k=7", "train.vocabulary_chunk_tokens=0", "train.skip_halted=true"]
    )
    words = describe_computation(changed, cpu)
    assert words["mixture"] == "top 7, all tokens at once"
    assert words["halted tokens"] == "skipped, with sdpa"


def test_a_recipe_s_defaults_are_the_network_s():
    config = model_config(read_recipe("quickstart"))
    assert config.vocabulary_chunk_tokens == read_recipe("quickstart").train.vocabulary_chunk_tokens
    assert config.mixture_top_k == 0
