"""The members of the family from their plain formulas, in few lines each, to compare the network with.

Each reads a state dictionary and gives logits [B, n, vocabulary] and gate logits [B, n, gated passes]; gradients reach
the weights through it. Nothing of `pipeline.model` computes here: the transformer is transformers' own GPT-NeoX, or
the per-token loops of `reference_pondering.py` where halted tokens keep keys and values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from tests.model.reference_pondering import ponder_row

Weights = dict[str, torch.Tensor]
Reference = tuple[torch.Tensor, torch.Tensor]

BACKBONE = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "rope_parameters",
    "use_parallel_residual",
)


def _stock(config: Any) -> Any:
    described: dict[str, Any] = {name: getattr(config, name) for name in BACKBONE}
    described["attn_implementation"] = "sdpa"
    stock: Any = GPTNeoXForCausalLM(GPTNeoXConfig(**described))
    return stock.double().eval()


def _run(network: Any, weights: Weights, *inputs: Any, **named: Any) -> Any:
    """The network's own forward, with those of the weights that it has."""
    own = {name: weights[name] for name, _ in network.named_parameters()}
    return functional_call(network, own, inputs, named)


def _without_gates(logits: torch.Tensor) -> Reference:
    return logits, logits.new_empty(*logits.shape[:2], 0)


def vanilla(weights: Weights, config: Any, tokens: torch.Tensor) -> Reference:
    """Stock GPT-NeoX."""
    return _without_gates(_run(_stock(config), weights, tokens).logits)


def ponderlm(weights: Weights, config: Any, tokens: torch.Tensor) -> Reference:
    """E <- E + softmax(logits) W, K - 1 times (P1)."""
    stock, table = _stock(config), weights["gpt_neox.embed_in.weight"]
    embeds = table[tokens]
    for _ in range(config.max_passes - 1):
        logits = _run(stock, weights, inputs_embeds=embeds).logits
        embeds = embeds + logits.softmax(-1) @ table
    return _without_gates(_run(stock, weights, inputs_embeds=embeds).logits)


def loop_transformer(weights: Weights, config: Any, tokens: torch.Tensor) -> Reference:
    """The stack of layers K times over, then the final LayerNorm and the head, once."""
    stock = _stock(config)
    norm, stock.gpt_neox.final_layer_norm = stock.gpt_neox.final_layer_norm, nn.Identity()
    stack = {name.removeprefix("gpt_neox."): value for name, value in weights.items()}
    state = weights["gpt_neox.embed_in.weight"][tokens]
    for _ in range(config.max_passes):
        state = _run(stock.gpt_neox, stack, inputs_embeds=state).last_hidden_state
    scale, shift = (weights[f"gpt_neox.final_layer_norm.{part}"] for part in ("weight", "bias"))
    return _without_gates(
        F.layer_norm(state, norm.normalized_shape, scale, shift, norm.eps) @ weights["lm_head.weight"].T
    )


def pause_tokens(weights: Weights, config: Any, tokens: torch.Tensor) -> Reference:
    """A text in which the P pauses are words of their own, written out after every token; its last pauses predict."""
    table = torch.cat([weights["gpt_neox.embed_in.weight"], weights["gpt_neox.pause_in.weight"]])
    pauses = [config.vocab_size + number for number in range(config.pause_tokens)]
    text = torch.tensor([[word for token in row for word in (token, *pauses)] for row in tokens.tolist()])
    logits = _run(_stock(config), weights, inputs_embeds=table[text]).logits
    last = [place for place, word in enumerate(text[0].tolist()) if word == pauses[-1]]
    return _without_gates(logits[:, last])


def token_by_token(weights: Weights, config: Any, tokens: torch.Tensor) -> Reference:
    """AdaPonderLM and its variants: gates, halting, frozen states, keys and values that stay."""
    rows = [ponder_row(weights, config, row) for row in tokens.tolist()]
    gates = torch.stack([row.gates for row in rows])
    return torch.stack([row.logits for row in rows]), gates.logit()


def losses(reference: Reference, tokens: torch.Tensor, on: str, fraction: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross entropy, and the mean of the smallest `fraction` of the gate values of tokens that have a label."""
    logits, gate_logits = (part[:, :-1] for part in reference)
    cross_entropy = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    values = (gate_logits if on == "logit" else gate_logits.sigmoid()).flatten()
    if not len(values):
        return cross_entropy, logits.new_zeros(())
    if fraction == 1:
        return cross_entropy, values.mean()
    return cross_entropy, values.sort().values[: int(fraction * len(values))].mean()
