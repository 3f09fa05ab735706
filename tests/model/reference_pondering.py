"""The method written a second time, by per-token loops over plain tensors, to compare the network with.

It shares no code with `pipeline.model` and none with transformers' GPT-NeoX: it reads a state dictionary and follows
the equations one token at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F


@dataclass
class Pondered:
    logits: torch.Tensor
    gates: torch.Tensor
    depths: list[int]


def ponder_row(weights: dict[str, torch.Tensor], config: Any, tokens: list[int]) -> Pondered:
    """Logits [n, vocabulary], gates [n, gated passes] and depths of one row."""
    table = weights["gpt_neox.embed_in.weight"] * config.embed_scale
    halts = config.halting == "masked" and config.gating == "learned"
    embeds = [table[token] * config.initial_embed_scale for token in tokens]
    hidden: list[torch.Tensor] = [torch.empty(0) for _ in tokens]
    kept: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
    active = [True for _ in tokens]
    depths = [0 for _ in tokens]
    gates: list[list[torch.Tensor]] = [[] for _ in tokens]

    for i in range(config.max_passes):
        x = list(embeds)
        for layer in range(config.num_hidden_layers):
            queries = []
            for t, state in enumerate(x):
                query, key, value = _query_key_value(weights, config, layer, state, t)
                queries.append(query)
                if active[t] or not config.kv_reuse:
                    kept[layer, t] = (key, value)
            x = [
                _layer_output(weights, config, layer, state, queries[t], [kept[layer, s] for s in range(t + 1)])
                for t, state in enumerate(x)
            ]
        for t in range(len(tokens)):
            depths[t] += active[t]
            if active[t] or not config.freeze_halted:
                hidden[t] = _layer_norm(weights, config, "gpt_neox.final_layer_norm", x[t])
            gate = "gates.0" if config.shared_gate else f"gates.{i}"
            if f"{gate}.logit.weight" in weights and (i < config.max_passes - 1 or config.gate_on_last_pass):
                inner = F.gelu(_linear(weights, f"{gate}.dense_h_to_4h", hidden[t]))
                gates[t].append(torch.sigmoid(_linear(weights, f"{gate}.logit", inner))[0])
            if i == config.max_passes - 1:
                continue
            s = 1.0 if config.gating == "open" else gates[t][i]
            if halts and active[t] and s < config.halt_threshold:
                active[t] = False
            if active[t]:
                probabilities = torch.softmax(weights["lm_head.weight"] @ hidden[t], dim=0)
                embeds[t] = embeds[t] + s * sum(p * row for p, row in zip(probabilities, table, strict=True))

    logits = torch.stack([weights["lm_head.weight"] @ state for state in hidden])
    return Pondered(logits, torch.stack([torch.stack([*row, logits.new_zeros(())])[:-1] for row in gates]), depths)


def _query_key_value(
    weights: dict[str, torch.Tensor], config: Any, layer: int, state: torch.Tensor, position: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each [heads, head size], query and key turned by RoPE to their position."""
    name = f"gpt_neox.layers.{layer}"
    fused = _linear(
        weights, f"{name}.attention.query_key_value", _layer_norm(weights, config, f"{name}.input_layernorm", state)
    )
    query, key, value = fused.view(config.num_attention_heads, 3, -1).unbind(1)
    return _rotated(config, query, position), _rotated(config, key, position), value


def _rotated(config: Any, heads: torch.Tensor, position: int) -> torch.Tensor:
    turned = int(heads.shape[-1] * config.rope_parameters["partial_rotary_factor"])
    out = heads.clone()
    for j in range(turned // 2):
        # GPT-NeoX's frequencies are float32 in every model, and so are their angles.
        frequency = torch.tensor(config.rope_parameters["rope_theta"]) ** torch.tensor(-2.0 * j / turned)
        angle = torch.tensor(float(position)) * frequency
        cos, sin = angle.cos().to(heads.dtype), angle.sin().to(heads.dtype)
        first, second = heads[:, j], heads[:, j + turned // 2]
        out[:, j] = first * cos - second * sin
        out[:, j + turned // 2] = second * cos + first * sin
    return out


def _layer_output(
    weights: dict[str, torch.Tensor],
    config: Any,
    layer: int,
    state: torch.Tensor,
    query: torch.Tensor,
    visible: list[tuple[torch.Tensor, torch.Tensor]],
) -> torch.Tensor:
    name = f"gpt_neox.layers.{layer}"
    mixed = []
    for head in range(config.num_attention_heads):
        scores = torch.stack([query[head] @ key[head] for key, _ in visible]) / query.shape[-1] ** 0.5
        shares = torch.softmax(scores, dim=0)
        mixed.append(sum(share * value[head] for share, (_, value) in zip(shares, visible, strict=True)))
    attended = _linear(weights, f"{name}.attention.dense", torch.cat([torch.as_tensor(part) for part in mixed]))
    between = state if config.use_parallel_residual else state + attended
    inner = F.gelu(
        _linear(
            weights,
            f"{name}.mlp.dense_h_to_4h",
            _layer_norm(weights, config, f"{name}.post_attention_layernorm", between),
        )
    )
    return state + attended + _linear(weights, f"{name}.mlp.dense_4h_to_h", inner)


def _linear(weights: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]


def _layer_norm(weights: dict[str, torch.Tensor], config: Any, name: str, x: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean()
    scale = torch.sqrt((centred**2).mean() + config.layer_norm_eps)
    return centred / scale * weights[f"{name}.weight"] + weights[f"{name}.bias"]
