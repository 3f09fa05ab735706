"""The network: one GPT-NeoX transformer run K times, with gates, monotone halting and K/V reuse (method sections 1-3).

`AdaPonderModel` is one pass of the transformer; `AdaPonderForCausalLM` is the loop over the passes and the loss. The
state dictionary keeps GPT-NeoX's names, with the gates beside them, so that stock Pythia weights load as they are.

Nothing here branches on data: all passes and all gates run in every forward, halting is masks, and with labels every
parameter takes part in the graph. Ranks that took different branches would wait for each other for ever under ZeRO.
Parameters are read by their own module's forward only, which is where ZeRO-3 gathers them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationMixin
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.models.gpt_neox.modeling_gpt_neox import (
    GPTNeoXLayer,
    GPTNeoXPreTrainedModel,
    GPTNeoXRotaryEmbedding,
)
from transformers.utils.generic import ModelOutput, can_return_tuple

from .aligned_cache import AlignedKeyValues
from .backbone import load_backbone
from .configuration_adaponder import AdaPonderConfig
from .gates import Gate, GateLogit
from .ponder_loss import ponder_loss


@dataclass
class AdaPonderOutput(ModelOutput):
    """What a forward gives. B batch, n tokens, G gates (`config.num_gates`), K passes."""

    loss: torch.Tensor | None = None
    """ce_loss + ponder_weight * ponder_loss, in nats; None without labels, as its two parts."""
    ce_loss: torch.Tensor | None = None
    """Cross entropy of the last pass, float32, nats, mean over the labels that are not -100."""
    ponder_loss: torch.Tensor | None = None
    """Mean of the smallest gate values of the positions that have a label (see `ponder_loss.py`), float32."""
    logits: torch.Tensor | None = None
    """[B, n, vocabulary] of the last pass; the last `logits_to_keep` positions where that is above 0."""
    gates: torch.Tensor | None = None
    """s, float32 [B, n, G], between 0 and 1."""
    gate_logits: torch.Tensor | None = None
    """g, float32 [B, n, G]; s = sigmoid(g)."""
    depths: torch.Tensor | None = None
    """Passes each token took part in, int64 [B, n]: 1 if it halted after the first, K if it never halted."""


class PonderEmbedding(nn.Embedding):
    """The token embedding, which also takes a distribution over the vocabulary and gives the embedding's mean."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[B, n] ids, or [B, n, vocabulary] probabilities, to [B, n, h]."""
        if input.is_floating_point():
            return input @ self.weight
        return super().forward(input)


class AdaPonderPreTrainedModel(GPTNeoXPreTrainedModel):
    """Initialisation from scratch (P1; method section 5), and what transformers must know about the network."""

    config_class = AdaPonderConfig
    config: AdaPonderConfig
    # Recomputing a layer alone would align its keys and values a second time, with a later pass's mask.
    supports_gradient_checkpointing = False

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
        layers = [layer for layer in self.modules() if isinstance(layer, GPTNeoXLayer)]
        return any(module is layer.attention.dense or module is layer.mlp.dense_4h_to_h for layer in layers)


class AdaPonderModel(AdaPonderPreTrainedModel):
    """One pass of the transformer, of transformers' own GPT-NeoX layers under GPT-NeoX's names."""

    def __init__(self, config: AdaPonderConfig) -> None:
        super().__init__(config)
        self.embed_in = PonderEmbedding(config.vocab_size, config.hidden_size)
        self.emb_dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList([GPTNeoXLayer(config, i) for i in range(config.num_hidden_layers)])
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.rotary_emb = GPTNeoXRotaryEmbedding(config=config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_in

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embed_in = value

    def forward(
        self,
        embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        aligned: AlignedKeyValues | None,
    ) -> torch.Tensor:
        """h^i [B, n, h], after the final LayerNorm, from E^i [B, n, h].

        attention_mask: the causal mask in the form the attention implementation wants. position_embeddings: cos and sin
        of RoPE. aligned: where keys and values are aligned with the pass before; None: no token keeps older ones.
        """
        hidden_states = self.emb_dropout(embeds)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                attention_mask=attention_mask,
                layer_past=aligned,
                position_embeddings=position_embeddings,
            )
        return self.final_layer_norm(hidden_states)


class AdaPonderForCausalLM(AdaPonderPreTrainedModel, GenerationMixin):
    """A causal language model that decides, token by token, how many of its `max_passes` passes to take."""

    def __init__(self, config: AdaPonderConfig) -> None:
        super().__init__(config)
        self.gpt_neox = AdaPonderModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.gates = nn.ModuleList([Gate(config.hidden_size) for _ in range(config.num_gates)])
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.lm_head = new_embeddings

    @classmethod
    def from_backbone(
        cls, where: str, *, dtype: torch.dtype = torch.float32, **ponder_fields: Any
    ) -> AdaPonderForCausalLM:
        """A model that starts from a checkpoint: any GPT-NeoX, by hub id or folder, or an AdaPonder's own folder.

        ponder_fields: fields of the method (`AdaPonderConfig.ponder_fields()`); those of an own folder hold where none
        are given. Gates that the checkpoint does not have are initialised; gates for which the fields given leave no
        place are left out. Weights come in `dtype`, the model in evaluation mode. Raises ValueError, naming the keys,
        if any other weight is missing or unexpected, and OSError if there is nothing at `where`.
        """
        return load_backbone(cls, where, dtype, ponder_fields)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        shift_labels: torch.Tensor | None = None,
        ponder_weight: float = 0.0,
        ponder_fraction: float = 0.0,
        logits_to_keep: int = 0,
    ) -> AdaPonderOutput:
        """All passes over all tokens.

        input_ids: int64 [B, n]. attention_mask: [B, n], 1 on tokens and 0 on padding. position_ids: [B, n]; counted
        from 0 where not given. labels: int64 [B, n], the input ids themselves, shifted here (Hugging Face's
        convention); shift_labels: int64 [B, n], aligned with the logits already; -100 is ignored in both.
        ponder_weight: lambda; ponder_fraction: k_s. logits_to_keep: 0 for the logits of all positions.
        Raises ValueError if both kinds of labels are given, or labels for logits that are not kept.
        """
        if labels is not None and shift_labels is not None:
            raise ValueError("labels and shift_labels are given: give one of them")
        if labels is not None:
            shift_labels = F.pad(labels[:, 1:], (0, 1), value=-100)
        if shift_labels is not None and logits_to_keep:
            raise ValueError("logits_to_keep and labels are given: the loss needs the logits of all positions")

        hidden, gate_logits, depths = self._ponder(input_ids, attention_mask, position_ids)
        gates = gate_logits.sigmoid()
        logits = self.lm_head(hidden[:, -logits_to_keep:])
        loss = ce_loss = pushed_down = None
        if shift_labels is not None:
            gate_values = gates if self.config.ponder_loss_on == "probability" else gate_logits
            ce_loss = cross_entropy(logits, shift_labels)
            counted = shift_labels != -100  # a row's padding at the end is told by its labels alone
            if attention_mask is not None:
                counted = counted & attention_mask.bool()
            pushed_down = ponder_loss(gate_values, ponder_fraction, counted.to(gate_values.device))
            loss = ce_loss + ponder_weight * pushed_down
        return AdaPonderOutput(
            loss=loss,
            ce_loss=ce_loss,
            ponder_loss=pushed_down,
            logits=logits,
            gates=gates,
            gate_logits=gate_logits,
            depths=depths,
        )

    def _ponder(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, position_ids: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The loop over the passes (method section 1): the last hidden state, all gate logits, all depths."""
        config = self.config
        halts = config.halting == "masked" and config.gating == "learned"
        embed = self.gpt_neox.embed_in
        embeds = embed(input_ids) * (config.embed_scale * config.initial_embed_scale)
        causal_mask = create_causal_mask(
            config=config,
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            past_key_values=None,
            position_ids=position_ids,
        )
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)
        position_embeddings = self.gpt_neox.rotary_emb(embeds, position_ids=position_ids)
        aligned = AlignedKeyValues(config.num_hidden_layers) if halts and config.kv_reuse else None

        active = torch.ones_like(input_ids, dtype=torch.bool)
        depths = torch.full_like(input_ids, 1 if halts else config.max_passes)
        gate_logits = []
        hidden = embeds
        for i in range(config.max_passes):
            if aligned is not None:
                aligned.start_pass(active)
            fresh = self.gpt_neox(embeds, causal_mask, position_embeddings, aligned)
            if i > 0 and halts and config.freeze_halted:
                fresh = torch.where(active.unsqueeze(-1), fresh, hidden)
            hidden = fresh
            if i < len(self.gates):
                gate_logits.append(self.gates[i](hidden))
            if i == config.max_passes - 1:
                break
            mixture = embed(self.lm_head(hidden).softmax(-1)) * config.embed_scale
            if config.gating == "learned":
                gate = gate_logits[i].sigmoid()
                if halts:
                    active = active & (gate >= config.halt_threshold)
                    depths = depths + active
                    gate = gate * active
                mixture = mixture * gate.unsqueeze(-1).to(mixture.dtype)
            embeds = embeds + mixture
        if not gate_logits:
            dtype = torch.promote_types(hidden.dtype, torch.float32)
            return hidden, hidden.new_empty((*input_ids.shape, 0), dtype=dtype), depths
        return hidden, torch.stack(gate_logits, dim=-1), depths

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """No cache is kept in decoding: its keys would be those of one pass, and there are K."""
        return False

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The whole text so far at every step of `generate()`, with positions counted from the first real token."""
        position_ids = None
        if attention_mask is not None:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "logits_to_keep": logits_to_keep,
        }


def cross_entropy(logits: torch.Tensor, shift_labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy in nats, in float32, mean over the labels that are not -100; 0 where there is none.

    logits: [B, n, vocabulary]. shift_labels: int64 [B, n], the token that follows each position.
    """
    logits = logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))
    shift_labels = shift_labels.flatten().to(logits.device)
    total = F.cross_entropy(logits, shift_labels, ignore_index=-100, reduction="sum")
    return total / (shift_labels != -100).sum().clamp(min=1)
