"""Networks small enough for a test, and random enough that every part of them shows in the output."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.model import AdaPonderConfig, AdaPonderForCausalLM

VOCABULARY = 23


def tiny_config(**fields: Any) -> AdaPonderConfig:
    """Two layers of 16 units; rotary embeddings on half of each head, so that both halves are tried."""
    chosen = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 32,
        "rotary_pct": 0.5,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    return AdaPonderConfig(**{**chosen, **fields})


def halting_config(**fields: Any) -> AdaPonderConfig:
    """Gates that differ from token to token and a threshold in their midst, so that tokens halt at every depth."""
    return tiny_config(**{"gate_bias": 0.0, "gate_output_std": 0.7, "halt_threshold": 0.4, **fields})


def random_model(config: AdaPonderConfig, seed: int, dtype: torch.dtype = torch.float64) -> Any:
    """A network with no weight at a special value: biases are not 0, LayerNorms not 1, logits not flat.

    An AdaPonderForCausalLM in evaluation mode; Any, because transformers' annotations of `to` and `generate` do not
    hold for its own classes.
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model: Any = AdaPonderForCausalLM(config)
    model.to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model.eval()


def random_tokens(*shape: int, seed: int) -> torch.Tensor:
    return torch.randint(1, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))
