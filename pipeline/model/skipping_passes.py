"""The skipping path: a pass is computed for its active tokens only, and gives what the plain path gives.

The active tokens of all rows lie packed as rows of one matrix. They go through QKV, attention output and MLP; their
keys and values replace the older ones of the same tokens; their queries see all keys. The gate comes before the
vocabulary head, and only tokens that go on pay for head and mixture (method section 7). Padding is never computed.

In training, and wherever ZeRO-3 spreads the weights over ranks, every pass runs on every rank, with whatever tokens
are active there, and if there are none, with none: the same modules in the same order. Elsewhere a pass in which no
token is active is left out, and all after it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb

from .few_rows import few_rows_linear, takes_few_rows
from .packed_attention import PackedAttention
from .pondering import Pondered, PonderInputs

KeyValue = tuple[torch.Tensor, torch.Tensor]


def ponder_skipping(model: Any, inputs: PonderInputs) -> Pondered:
    """The passes of `model`, an AdaPonderForCausalLM, over the tokens that are active in each.

    With a cache no gradient is recorded: later tokens are written into the memory that it would need. Raises ValueError
    where the configuration lets a halted token change, which leaves nothing to skip.
    """
    with torch.set_grad_enabled(torch.is_grad_enabled() and inputs.cache is None):
        return _ponder(model, inputs)


def _ponder(model: Any, inputs: PonderInputs) -> Pondered:
    config, input_ids, cache = model.config, inputs.input_ids, inputs.cache
    config.check_skipping()
    num_rows, n = input_ids.shape
    recording = torch.is_grad_enabled()
    every_pass = recording or any(hasattr(weight, "ds_id") for weight in model.lm_head.parameters())
    active, real = _real_tokens(inputs)
    whole = real is None
    embeds = model.gpt_neox.embed(input_ids)
    cos, sin = _rotations(model, inputs, embeds)
    embeds = embeds.flatten(0, 1)
    hidden = torch.zeros_like(embeds)
    index = None if whole else active.flatten().nonzero().squeeze(1)
    depths = active.long().flatten()
    gate_logits: list[torch.Tensor] = []
    kept: list[KeyValue] | None = None
    entries: list[tuple[torch.Tensor | None, torch.Tensor]] = []

    for i in range(config.max_passes):
        if index is not None and not len(index) and not every_pass:
            if inputs.every_gate:
                gate_logits += [model.gate(j, hidden) for j in range(i, config.gated_passes)]
            break
        attention = PackedAttention(active, whole, real, [] if cache is None else cache.read_by(i))
        rotation = _take(cos, index), _take(sin, index)
        packed, kept, fresh = _run_layers(
            model, i, _take(embeds, index), index, (num_rows, n), attention, rotation, kept, cache is not None
        )
        if cache is not None:
            entries.append((index, fresh))
        hidden = packed if index is None else _put(hidden, index, packed, recording)
        has_gate, last = i < config.gated_passes, i == config.max_passes - 1
        if has_gate:
            logits = model.gate(i, hidden if inputs.every_gate else packed)
            gate_logits.append(logits if inputs.every_gate else _spread(logits, index, num_rows * n))
        if last:
            break
        weight = gate_logits[i].sigmoid() if has_gate else None
        if config.halts:
            going = active.flatten() & inputs.goes_on(i, gate_logits[i], config.halt_threshold)
            next_index = going.nonzero().squeeze(1)
            if len(next_index) == num_rows * n:
                next_index = None
            whole = next_index is None
            active, depths = going.view(num_rows, n), depths + going
        else:
            next_index, depths = index, depths + active.flatten()
        if config.feedback == "hidden_state":
            embeds = hidden
        elif every_pass or next_index is None or len(next_index):
            mixture = model.mixture(_take(hidden, next_index))
            if weight is not None:
                mixture = mixture * _take(weight, next_index).unsqueeze(-1).to(mixture.dtype)
            mixture = mixture.to(embeds.dtype)  # under autocast a product's is another
            embeds = embeds + mixture if next_index is None else embeds.index_add(0, next_index, mixture)
        index = next_index

    depths = depths.view(num_rows, n)
    if cache is not None:
        kept = fresh = None  # the cache is about to take memory of its own
        cache.add(entries, depths)
    return Pondered(hidden.view(num_rows, n, -1), _stack_gates(model, gate_logits, depths, hidden), depths)


def _real_tokens(inputs: PonderInputs) -> tuple[torch.Tensor, torch.Tensor | None]:
    """bool [B, n]: the tokens that are no padding; and the same again, or None where all are."""
    input_ids, mask = inputs.input_ids, inputs.attention_mask
    if mask is not None:
        real = mask[:, -input_ids.shape[1] :].bool()
        if not bool(real.all()):
            return real, real
    return torch.ones_like(input_ids, dtype=torch.bool), None


def _rotations(model: Any, inputs: PonderInputs, embeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of RoPE for every token, each [B * n, rotated]."""
    num_rows, n = inputs.input_ids.shape
    places = inputs.position_ids
    if places is None:
        seen = 0 if inputs.cache is None else inputs.cache.get_seq_length()
        places = torch.arange(seen, seen + n, device=embeds.device).unsqueeze(0)
    cos, sin = model.gpt_neox.rotary_emb(embeds, position_ids=places)
    return cos.expand(num_rows, n, -1).flatten(0, 1), sin.expand(num_rows, n, -1).flatten(0, 1)


def _run_layers(
    model: Any,
    pass_index: int,
    packed: torch.Tensor,
    index: torch.Tensor | None,
    shape: tuple[int, int],
    attention: PackedAttention,
    rotation: KeyValue,
    previous: list[KeyValue] | None,
    for_cache: bool,
) -> tuple[torch.Tensor, list[KeyValue], Any]:
    """One pass over packed tokens [A, h], up to `AdaPonderModel.leave`.

    Returns h^i [A, h]; of each layer the aligned keys and values [B, n, heads, D]; for a cache the active tokens' own
    entries [L, 2, A, heads, D].
    """
    network = model.gpt_neox
    packed = network.enter(packed, pass_index)
    kept: list[KeyValue] = []
    fresh: torch.Tensor | None = None
    for number, layer in enumerate(network.layers):
        past = None if previous is None else previous[number]
        arguments = (layer, packed, index, shape, attention, rotation, past)
        # Of a whole pass recomputed at once nothing more is saved than layer by layer but the layers' inputs.
        if network.checkpointing in ("layer", "pass") and torch.is_grad_enabled():
            packed, keeps, _ = checkpoint(run_packed_layer, *arguments, use_reentrant=False)  # pyright: ignore
        else:
            packed, keeps, own = run_packed_layer(*arguments)
            if for_cache:
                if fresh is None:
                    fresh = own[0].new_empty(len(network.layers), 2, *own[0].shape)
                fresh[number, 0], fresh[number, 1] = own
        kept.append(keeps)
    return network.leave(packed, pass_index), kept, fresh


def run_packed_layer(
    layer: Any,
    packed: torch.Tensor,
    index: torch.Tensor | None,
    shape: tuple[int, int],
    attention: PackedAttention,
    rotation: KeyValue,
    previous: KeyValue | None,
) -> tuple[torch.Tensor, KeyValue, KeyValue]:
    """One GPT-NeoX layer over packed tokens [A, h], as transformers' own layer computes it over all.

    Returns its output [A, h], the aligned keys and values [B, n, heads, D], and the active tokens' own [A, heads, D].
    """
    module = layer.attention
    fused = few_rows_linear(module.query_key_value, layer.input_layernorm(packed))
    # Sizes in numbers: -1 has no meaning where no token is active.
    heads = fused.shape[1] // (3 * module.head_size)
    query, key, value = fused.view(len(packed), heads, 3 * module.head_size).chunk(3, dim=-1)
    query, key = apply_rotary_pos_emb(query, key, *rotation)
    if index is None or previous is None:
        keys, values = _over_all(key, index, shape), _over_all(value, index, shape)
    else:
        keys, values = (
            _put(old.flatten(0, 1), index, own, torch.is_grad_enabled()).view(old.shape)
            for old, own in zip(previous, (key, value), strict=True)
        )
    dropout = module.attention_dropout if module.training else 0.0
    attended = attention(query, keys, values, module.layer_idx, module.scaling, dropout)
    attended = layer.post_attention_dropout(few_rows_linear(module.dense, attended))
    if layer.use_parallel_residual:
        inner = layer.post_mlp_dropout(_mlp(layer.mlp, layer.post_attention_layernorm(packed)))
        return inner + attended + packed, (keys, values), (key, value)
    attended = attended + packed
    inner = layer.post_mlp_dropout(_mlp(layer.mlp, layer.post_attention_layernorm(attended)))
    return inner + attended, (keys, values), (key, value)


def _mlp(mlp: Any, packed: torch.Tensor) -> torch.Tensor:
    if takes_few_rows(mlp.dense_h_to_4h, packed):
        return few_rows_linear(mlp.dense_4h_to_h, mlp.act(few_rows_linear(mlp.dense_h_to_4h, packed)))
    return mlp(packed)


def _over_all(own: torch.Tensor, index: torch.Tensor | None, shape: tuple[int, int]) -> torch.Tensor:
    """[B, n, heads, D] from the active tokens' [A, heads, D]; zeros where there is none. Later passes write into it."""
    if index is not None:
        own = own.new_zeros(shape[0] * shape[1], *own.shape[1:]).index_copy(0, index, own)
    return own.contiguous().view(*shape, *own.shape[1:])


def _take(rows: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
    return rows if index is None else rows.index_select(0, index)


def _put(rows: torch.Tensor, index: torch.Tensor, new: torch.Tensor, recording: bool) -> torch.Tensor:
    """`rows` with the rows `index` replaced: in place where no gradient needs the old ones."""
    return rows.index_copy(0, index, new) if recording else rows.index_copy_(0, index, new)


def _spread(logits: torch.Tensor, index: torch.Tensor | None, length: int) -> torch.Tensor:
    """[length] from the logits of the tokens `index`; -inf elsewhere."""
    if index is None:
        return logits
    return logits.new_full((length,), -torch.inf).index_copy(0, index, logits)


def _stack_gates(model: Any, gate_logits: list[torch.Tensor], depths: torch.Tensor, hidden: torch.Tensor):
    """float32 [B, n, gates]; -inf for the gates of passes that no token took part in."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    columns = [logits.view(depths.shape) for logits in gate_logits]
    while len(columns) < model.config.gated_passes:
        columns.append(torch.full(depths.shape, -torch.inf, dtype=dtype, device=hidden.device))
    return torch.stack(columns, dim=-1) if columns else hidden.new_empty((*depths.shape, 0), dtype=dtype)
