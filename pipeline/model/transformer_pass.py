"""One pass of the transformer, and how its weights start (P1; method sections 1, 2 and 5)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXPreTrainedModel, GPTNeoXRotaryEmbedding

from .aligned_cache import AlignedLayer, FullPassCache, KeyValue
from .configuration_adaponder import AdaPonderConfig
from .gates import GateLogit
from .layers import PonderLayer
from .pause_tokens import PauseEmbedding
from .vocabulary import PonderEmbedding


class AdaPonderPreTrainedModel(GPTNeoXPreTrainedModel):
    """Initialisation from scratch (P1; method section 5), and what transformers must know about the network."""

    config_class = AdaPonderConfig
    config: AdaPonderConfig
    _no_split_modules = ["PonderLayer"]  # noqa: RUF012 - transformers' own attribute

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Truncated normal, std sqrt(2 / (5h)), cut at 3 std; biases 0, LayerNorm 1; gates as the config says."""
        std = math.sqrt(2 / (5 * self.config.hidden_size))
        if isinstance(module, GateLogit):
            init.normal_(module.weight, mean=0.0, std=self.config.gate_output_std)
            init.constant_(module.bias, self.config.gate_bias)
        elif isinstance(module, nn.Linear):
            if self._writes_to_the_residual(module):
                std /= math.sqrt(2 * self.config.num_hidden_layers * self.config.max_passes)
            init.trunc_normal_(module.weight, mean=0.0, std=std, a=-3 * std, b=3 * std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.trunc_normal_(module.weight, mean=0.0, std=std, a=-3 * std, b=3 * std)
        else:
            super()._init_weights(module)

    def _writes_to_the_residual(self, module: nn.Module) -> bool:
        """Whether a module is one of the attention and MLP output projections, whose start is scaled down.

        Told by identity: a module's own name does not say where it stands, and transformers does not call the
        initialisation of modules without parameters of their own, as the attention is, in code loaded from a release.
        """
        layers = [layer for layer in self.modules() if isinstance(layer, PonderLayer)]
        return any(module is layer.attention.dense or module is layer.mlp.dense_4h_to_h for layer in layers)


class AdaPonderModel(AdaPonderPreTrainedModel):
    """One pass of the transformer, of transformers' own GPT-NeoX layers under GPT-NeoX's names."""

    def __init__(self, config: AdaPonderConfig) -> None:
        super().__init__(config)
        self.embed_in = PonderEmbedding(config.vocab_size, config.hidden_size)
        if config.pause_tokens:
            self.pause_in = PauseEmbedding(config.pause_tokens, config.hidden_size)
        self.emb_dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList([PonderLayer(config, i) for i in range(config.num_hidden_layers)])
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.rotary_emb = GPTNeoXRotaryEmbedding(config=config)
        self.checkpointing = "none"
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_in

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embed_in = value

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """E^0 [B, positions, h], from int64 ids of all positions [B, positions], those of pauses included."""
        config = self.config
        embeds = self.embed_in(input_ids[:, :: config.positions_per_token])
        if config.pause_tokens:
            embeds = self.pause_in(embeds)
        return embeds * (config.embed_scale * config.initial_embed_scale)

    def enter(self, embeds: torch.Tensor, pass_index: int) -> torch.Tensor:
        """What the first layer of a pass is given, [..., h]: embeddings with dropout; a looped state as it is."""
        loops = self.config.feedback == "hidden_state"
        return embeds if loops and pass_index else self.emb_dropout(embeds)

    def leave(self, hidden_states: torch.Tensor, pass_index: int) -> torch.Tensor:
        """h^i [..., h] from the last layer's output: after the final LayerNorm, which a looped state meets only once,
        in the last pass (method section 8)."""
        loops = self.config.feedback == "hidden_state"
        return (
            hidden_states if loops and pass_index < self.config.max_passes - 1 else self.final_layer_norm(hidden_states)
        )

    def forward(
        self,
        embeds: torch.Tensor,
        attention_mask: Any,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        active: torch.Tensor | None = None,
        previous: list[KeyValue] | None = None,
        cache: FullPassCache | None = None,
        pass_index: int = 0,
    ) -> tuple[torch.Tensor, list[KeyValue] | None]:
        """h^i [B, n, h], see `leave`, from E^i [B, n, h], and what each layer keeps for the next pass.

        attention_mask: the causal mask in the form the attention implementation wants. position_embeddings: cos and sin
        of RoPE. active: m^i, bool [B, n], where keys and values of halted tokens are to be those of the pass before,
        which are `previous`; None: no token keeps older ones. cache: where decoding keeps this pass's.
        """
        hidden_states = self.enter(embeds, pass_index)
        kept: list[KeyValue] | None = None if active is None else []
        for i, layer in enumerate(self.layers):
            past = None if previous is None else previous[i]
            arguments = (layer, hidden_states, attention_mask, position_embeddings, active, past, cache, pass_index)
            recomputed = self.checkpointing in ("layer", "pass") and torch.is_grad_enabled()
            if recomputed and self.checkpointing == "layer":
                ran = checkpoint(_run_layer, *arguments, recomputed, use_reentrant=False)
                hidden_states, keeps = ran  # pyright: ignore
            else:
                hidden_states, keeps = _run_layer(*arguments, recomputed)
            if kept is not None and keeps is not None:
                kept.append(keeps)
        return self.leave(hidden_states, pass_index), kept


def _run_layer(
    layer: nn.Module,
    hidden_states: torch.Tensor,
    attention_mask: Any,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    active: torch.Tensor | None,
    previous: KeyValue | None,
    cache: FullPassCache | None,
    pass_index: int,
    recomputed: bool,
) -> tuple[torch.Tensor, KeyValue | None]:
    """One layer of one pass: its output, and the keys and values that it leaves to the next pass (None: none).

    recomputed: nothing else that the layer computes is kept for backward.
    """
    past = None
    if active is not None or cache is not None:
        past = AlignedLayer(active, previous, cache, pass_index)
    hidden_states = layer(
        hidden_states, attention_mask=attention_mask, layer_past=past, position_embeddings=position_embeddings
    )
    if past is None or past.kept is None or active is None:
        return hidden_states, None
    key, value = past.kept
    if recomputed and previous is None:
        # A first pass's values are a part of the fused QKV, all of which would be kept with them.
        value = value.clone()
    return hidden_states, (key, value)
