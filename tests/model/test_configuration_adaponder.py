"""The configuration refuses what the network cannot be, and survives being written and read."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import GPTNeoXConfig

from pipeline.model import AdaPonderConfig
from tests.model.tiny_adaponder import tiny_config


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_passes": 0}, "max_passes"),
        ({"max_passes": 2.0}, "max_passes"),
        ({"max_passes": True}, "max_passes"),
        ({"halt_threshold": 1.0}, "halt_threshold"),
        ({"halt_threshold": -0.1}, "halt_threshold"),
        ({"halt_threshold": "low"}, "halt_threshold"),
        ({"halting": "skipped"}, "halting"),
        ({"gating": "closed"}, "gating"),
        ({"ponder_loss_on": "logits"}, "ponder_loss_on"),
        ({"kv_reuse": 1}, "kv_reuse"),
        ({"freeze_halted": "yes"}, "freeze_halted"),
        ({"gate_on_last_pass": None}, "gate_on_last_pass"),
        ({"shared_gate": 1}, "shared_gate is 1"),
        ({"shared_gate": True, "gating": "open"}, "shared_gate is true: it needs gating learned"),
        ({"shared_gate": True, "max_passes": 1}, "shared_gate is true: it needs gating learned"),
        ({"feedback": "hidden"}, "feedback"),
        ({"feedback": "hidden_state"}, "feedback is hidden_state: it needs gating open"),
        ({"feedback": "hidden_state", "gating": "open", "mixture_top_k": 3}, "no mixture for mixture_top_k 3"),
        ({"pause_tokens": -1}, "pause_tokens"),
        ({"pause_tokens": 3}, "pause_tokens is 3: it needs max_passes 1, not 4"),
        ({"pause_tokens": 32, "max_passes": 1}, "pause_tokens is 32: not one token"),
        ({"embed_scale": 0.0}, "embed_scale"),
        ({"initial_embed_scale": -3.0}, "initial_embed_scale"),
        ({"gate_bias": float("nan")}, "gate_bias"),
        ({"gate_output_std": -1e-3}, "gate_output_std"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"num_attention_heads": 3}, "attention heads"),
    ],
)
def test_a_bad_value_raises_one_line(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named) as caught:
        tiny_config(**fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "gates"),
    [
        ({"max_passes": 4}, 3),
        ({"max_passes": 4, "gate_on_last_pass": True}, 4),
        ({"max_passes": 4, "gating": "open"}, 0),
        ({"max_passes": 1}, 0),
        ({"max_passes": 1, "gate_on_last_pass": True}, 0),
    ],
)
def test_num_gates(fields: dict[str, Any], gates: int) -> None:
    assert tiny_config(**fields).num_gates == tiny_config(**fields).gated_passes == gates


def test_a_shared_gate_is_asked_after_as_many_passes() -> None:
    shared = tiny_config(shared_gate=True)
    assert (shared.num_gates, shared.gated_passes) == (1, 3)
    shared = tiny_config(shared_gate=True, gate_on_last_pass=True)
    assert (shared.num_gates, shared.gated_passes) == (1, 4)


def test_pauses_shorten_the_longest_text() -> None:
    assert (tiny_config().positions_per_token, tiny_config().max_tokens) == (1, 32)
    paused = tiny_config(max_passes=1, pause_tokens=2)
    assert (paused.positions_per_token, paused.max_tokens) == (3, 10)


def test_every_field_survives_the_file(tmp_path) -> None:
    other_than_default = {
        "max_passes": 3,
        "halt_threshold": 0.01,
        "halting": "none",
        "gating": "open",
        "gate_on_last_pass": True,
        "ponder_loss_on": "logit",
        "kv_reuse": False,
        "freeze_halted": False,
        "embed_scale": 4.0,
        "initial_embed_scale": 3.0,
        "gate_bias": -4.0,
        "gate_output_std": 0.0,
        "mixture_top_k": 7,
        "vocabulary_chunk_tokens": 0,
    }
    of_other_members = [
        {"feedback": "hidden_state", "gating": "open"},
        {"pause_tokens": 3, "max_passes": 1},
        {"shared_gate": True},
    ]
    assert set(other_than_default).union(*of_other_members) == AdaPonderConfig.ponder_fields()
    for fields in (other_than_default, *of_other_members):
        tiny_config(**fields).save_pretrained(tmp_path)
        read = AdaPonderConfig.from_pretrained(tmp_path)
        assert {name: getattr(read, name) for name in fields} == fields
        assert read.rope_parameters == tiny_config().rope_parameters


def test_from_gpt_neox_takes_the_backbone_and_nothing_else() -> None:
    described: dict[str, Any] = {
        "vocab_size": 31,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 40,
        "rotary_pct": 0.5,
        "rotary_emb_base": 5000,
        "use_parallel_residual": False,
        "architectures": ["GPTNeoXForCausalLM"],
        "auto_map": {"AutoConfig": "elsewhere.Config"},
        "use_cache": True,
    }
    backbone = GPTNeoXConfig(**described)
    config = AdaPonderConfig.from_gpt_neox(backbone, max_passes=2, gate_bias=-4.0)
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "use_parallel_residual"):
        assert getattr(config, name) == getattr(backbone, name)
    assert config.rope_parameters == backbone.rope_parameters
    assert config.rope_parameters is not backbone.rope_parameters
    assert (config.max_passes, config.gate_bias) == (2, -4.0)
    assert config.architectures is None
    assert not hasattr(config, "auto_map")


def test_from_gpt_neox_refuses_what_is_no_field_of_the_method() -> None:
    with pytest.raises(ValueError, match="hidden_size"):
        AdaPonderConfig.from_gpt_neox(GPTNeoXConfig(), hidden_size=64)
