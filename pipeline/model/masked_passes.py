"""The plain path: every pass over all tokens, halting is masks (method sections 1 and 2).

Nothing here branches on data: all passes and all gates run in every forward, and with labels every parameter takes part
in the graph. Ranks that took different branches would wait for each other for ever under ZeRO. Parameters are read by
their own module's forward only, which is where ZeRO-3 gathers them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers.masking_utils import create_causal_mask

from .pondering import Pondered, PonderInputs


def ponder_masked(model: Any, inputs: PonderInputs) -> Pondered:
    """All passes of `model`, an AdaPonderForCausalLM, over all tokens."""
    config, input_ids = model.config, inputs.input_ids
    halts = config.halts
    embeds = model.gpt_neox.embed(input_ids)
    position_ids = inputs.position_ids
    if position_ids is None:
        seen = 0 if inputs.cache is None else inputs.cache.get_seq_length()
        position_ids = torch.arange(seen, seen + input_ids.shape[1], device=input_ids.device).unsqueeze(0)
    # Positions are kept from transformers here: where they start again, it would hide documents from each other.
    causal_mask = create_causal_mask(
        config=config,
        inputs_embeds=embeds,
        attention_mask=inputs.attention_mask,
        past_key_values=inputs.cache,
        position_ids=None,
    )
    position_embeddings = model.gpt_neox.rotary_emb(embeds, position_ids=position_ids)

    active = torch.ones_like(input_ids, dtype=torch.bool)
    depths = torch.full_like(input_ids, 1 if halts else config.max_passes)
    gate_logits: list[torch.Tensor] = []
    hidden, kept = embeds, None
    for i in range(config.max_passes):
        aligned = active if halts and config.kv_reuse else None
        arguments = (embeds, causal_mask, position_embeddings, aligned, kept, inputs.cache, i)
        if model.gpt_neox.checkpointing == "pass" and torch.is_grad_enabled():
            fresh, kept = checkpoint(model.gpt_neox, *arguments, use_reentrant=False)  # pyright: ignore
        else:
            fresh, kept = model.gpt_neox(*arguments)
        if i > 0 and halts and config.freeze_halted:
            fresh = torch.where(active.unsqueeze(-1), fresh, hidden)
        hidden = fresh
        if i < config.gated_passes:
            gate_logits.append(model.gate(i, hidden))
        if i == config.max_passes - 1:
            break
        if config.feedback == "hidden_state":
            embeds = hidden
            continue
        mixture = model.mixture(hidden)
        if config.gating == "learned":
            gate = gate_logits[i].sigmoid()
            if halts:
                active = active & inputs.goes_on(i, gate_logits[i], config.halt_threshold)
                depths = depths + active
                gate = gate * active
            mixture = mixture * gate.unsqueeze(-1).to(mixture.dtype)
        embeds = embeds + mixture
    if not gate_logits:
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        return Pondered(hidden, hidden.new_empty((*input_ids.shape, 0), dtype=dtype), depths)
    return Pondered(hidden, torch.stack(gate_logits, dim=-1), depths)
