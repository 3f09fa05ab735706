"""The network: one GPT-NeoX transformer run K times, with gates, monotone halting and K/V reuse (method sections 1-3).

`AdaPonderForCausalLM` runs the passes (`transformer_pass.py` is one) and takes the loss. Two paths
compute the same: `masked_passes.py` plainly, over all tokens, and `skipping_passes.py` for the tokens that are active.
The state dictionary keeps GPT-NeoX's names, with the gates beside them, so that stock Pythia weights load as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.utils.generic import ModelOutput, can_return_tuple

from .adaponder_cache import AdaPonderCache
from .aligned_cache import FullPassCache
from .backbone import load_backbone
from .configuration_adaponder import AdaPonderConfig
from .gates import Gate
from .generation import AdaPonderGenerationMixin
from .layers import CHECKPOINTING
from .masked_passes import ponder_masked
from .pause_tokens import of_last_pauses, with_pauses
from .ponder_loss import depth_loss, ponder_loss
from .pondering import Pondered, PonderInputs
from .skipping_passes import ponder_skipping
from .transformer_pass import AdaPonderModel, AdaPonderPreTrainedModel
from .vocabulary import VocabularyHead


@dataclass
class AdaPonderOutput(ModelOutput):
    """What a forward gives. B batch, n tokens, G gated passes (`config.gated_passes`), K passes."""

    loss: torch.Tensor | None = None
    """ce_loss + ponder_weight * ponder_loss, in nats; None without labels, as its two parts."""
    ce_loss: torch.Tensor | None = None
    """Cross entropy of the last pass, float32, nats, mean over the labels that are not -100."""
    ponder_loss: torch.Tensor | None = None
    """Mean of the smallest gate values of the positions that have a label, or with `hold_depth` the distance of their
    gates to the threshold's other side (see `ponder_loss.py`), float32."""
    logits: torch.Tensor | None = None
    """[B, n, vocabulary] of the last pass; the last `logits_to_keep` positions where that is above 0. None with labels,
    unless they were asked for: the loss does without."""
    nll: torch.Tensor | None = None
    """Negative log likelihood of each label, float32 [B, n], nats, 0 where there is none. None where gradients are
    recorded: the mean alone is cheaper."""
    gates: torch.Tensor | None = None
    """s, float32 [B, n, G], between 0 and 1; 0 where halting was skipped past the gate and no loss asked for it."""
    gate_logits: torch.Tensor | None = None
    """g, float32 [B, n, G]; s = sigmoid(g), -inf where s was not computed."""
    depths: torch.Tensor | None = None
    """Passes each token took part in, int64 [B, n]: 1 if it halted after the first, K if it never halted."""
    past_key_values: Any = None
    """The cache, with the tokens of this forward in it; None without `use_cache`."""


class AdaPonderForCausalLM(AdaPonderPreTrainedModel, AdaPonderGenerationMixin):
    """A causal language model that decides, token by token, how many of its `max_passes` passes to take."""

    def __init__(self, config: AdaPonderConfig) -> None:
        super().__init__(config)
        self.gpt_neox = AdaPonderModel(config)
        self.lm_head = VocabularyHead(config.hidden_size, config.vocab_size)
        self.gates = nn.ModuleList([Gate(config.hidden_size) for _ in range(config.num_gates)])
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        if not isinstance(new_embeddings, VocabularyHead):  # transformers makes a plain one when it resizes
            head = VocabularyHead(new_embeddings.in_features, 0)
            head.out_features, head.weight = new_embeddings.out_features, new_embeddings.weight
            new_embeddings = head
        self.lm_head = new_embeddings

    @classmethod
    def from_backbone(
        cls, where: str, *, dtype: torch.dtype = torch.float32, **ponder_fields: Any
    ) -> AdaPonderForCausalLM:
        """A model that starts from a checkpoint: any GPT-NeoX, by hub id or folder, or an AdaPonder's own folder.

        ponder_fields: fields of the method (`AdaPonderConfig.ponder_fields()`); those of an own folder hold where none
        are given. Gates and pause tokens that the checkpoint does not have are initialised; those for which the fields
        given leave no place are left out. Weights come in `dtype`, the model in evaluation mode. Raises ValueError,
        naming the keys, if any other weight is missing or unexpected, and OSError if there is nothing at `where`.
        """
        return load_backbone(cls, where, dtype, ponder_fields)

    def set_activation_checkpointing(self, kind: str) -> None:
        """Choose what the backward pass computes again instead of keeping it; changes memory and time, no result.

        none: nothing; activation: what follows the activation function in each MLP, a fifth of the memory for next to
        no time; mlp: the inside of each MLP, two fifths of it; layer: each layer, from its input and the keys and
        values of the pass before; pass: each whole pass. The last two compute the gates again too. Raises ValueError
        for another.
        """
        if kind not in CHECKPOINTING:
            raise ValueError(f"activation checkpointing {kind!r}: it must be one of {', '.join(CHECKPOINTING)}")
        self.gpt_neox.checkpointing = kind
        for layer in self.gpt_neox.layers:
            mlp: Any = layer.mlp
            mlp.recompute = kind if kind in ("activation", "mlp") else "none"

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """transformers' switch: activation checkpointing a layer, non-reentrant whatever the arguments ask for."""
        self.set_activation_checkpointing("layer")

    def gradient_checkpointing_disable(self) -> None:
        self.set_activation_checkpointing("none")

    @property
    def is_gradient_checkpointing(self) -> bool:
        return self.gpt_neox.checkpointing != "none"

    def compile_layers(self) -> None:
        """Compile each layer of the plain path with torch.compile, which changes nothing but speed."""
        for layer in self.gpt_neox.layers:
            layer.compile()

    def new_cache(self) -> AdaPonderCache | FullPassCache:
        """An empty cache for decoding, of the kind that the path of `config.halting` fills."""
        if self.config.skips:
            return AdaPonderCache(self.config.max_passes, self.config.positions_per_token)
        return FullPassCache(self.config.num_hidden_layers, self.config.positions_per_token)

    def gate(self, pass_index: int, hidden: torch.Tensor) -> torch.Tensor:
        """g: the logits, float32 [...], of the gate after pass `pass_index` from hidden states [..., h]."""
        gate = self.gates[0 if self.config.shared_gate else pass_index]
        if self.gpt_neox.checkpointing in ("layer", "pass") and torch.is_grad_enabled():
            return checkpoint(gate, hidden, use_reentrant=False)  # pyright: ignore
        return gate(hidden)

    def mixture(self, hidden: torch.Tensor) -> torch.Tensor:
        """u: the embeddings' mean under the next token's distribution, [..., h] from hidden states [..., h]."""
        config = self.config
        mixed = self.gpt_neox.embed_in(
            hidden,
            head=self.lm_head,
            chunk_tokens=config.vocabulary_chunk_tokens,
            top_k=config.mixture_top_k,
            decoding=config.skips,
        )
        return mixed * config.embed_scale

    def ponder(self, inputs: PonderInputs) -> Pondered:
        """The passes alone, on the path of `config.halting`; `forward` adds logits and loss."""
        ponder, pauses = ponder_skipping if self.config.skips else ponder_masked, self.config.pause_tokens
        if pauses:
            return of_last_pauses(ponder(self, with_pauses(inputs, pauses)), pauses)
        return ponder(self, inputs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: AdaPonderCache | FullPassCache | None = None,
        use_cache: bool | None = None,
        labels: torch.Tensor | None = None,
        shift_labels: torch.Tensor | None = None,
        ponder_weight: float = 0.0,
        ponder_fraction: float = 0.0,
        hold_depth: bool = False,
        logits_to_keep: int = 0,
        return_logits: bool | None = None,
        imposed_depths: torch.Tensor | None = None,
        decide: Callable[[int, torch.Tensor], torch.Tensor] | None = None,
    ) -> AdaPonderOutput:
        """The passes over the tokens, the loss where there are labels. B batch, n tokens, p tokens cached before.

        input_ids: int64 [B, n]. attention_mask: [B, p + n], 1 on tokens and 0 on padding. position_ids: [B, n]; counted
        on from p where not given. past_key_values: the cache of p earlier tokens (`new_cache()` makes an empty one);
        use_cache: make one where none is given. labels: int64 [B, n], the input ids themselves, shifted here (Hugging
        Face's convention); shift_labels: int64 [B, n], aligned with the logits already; -100 is ignored in both.
        ponder_weight: lambda; ponder_fraction: k_s; hold_depth: press on the gates at the threshold instead of the
        lowest, which opens gates where ponder_weight is below 0 (see `ponder_loss.py`). logits_to_keep: 0 for the
        logits of all positions. return_logits: whether logits are wanted, by default where no labels are given: the
        loss never holds those of all tokens.
        imposed_depths: int64 [B, n], a depth for each token in place of the gates' decision, for measurements; decide:
        the same while the passes run: given a pass and its gates' logits [B, n], bool [B, n] of the tokens that go on.
        Raises ValueError if both kinds of labels or of depths are given, labels for logits that are not kept, a cache
        of the other path or of another number of rows or in training, depths of another shape, or no token.
        """
        if labels is not None and shift_labels is not None:
            raise ValueError("labels and shift_labels are given: give one of them")
        if imposed_depths is not None and decide is not None:
            raise ValueError("imposed_depths and decide are given: give one of them")
        if labels is not None:
            shift_labels = F.pad(labels[:, 1:], (0, 1), value=-100)
        if shift_labels is not None and logits_to_keep:
            raise ValueError("logits_to_keep and labels are given: the loss needs the logits of all positions")
        cache = self.new_cache() if past_key_values is None and use_cache else past_key_values
        self._check_inputs(input_ids, cache, imposed_depths)

        every_gate = shift_labels is not None and (torch.is_grad_enabled() or ponder_fraction > 0)
        pondered = self.ponder(
            PonderInputs(input_ids, attention_mask, position_ids, cache, imposed_depths, decide, every_gate)
        )
        gates = pondered.gate_logits.sigmoid()
        logits = nll = loss = ce_loss = pushed = None
        if return_logits or (return_logits is None and shift_labels is None):
            logits = self.lm_head(pondered.hidden[:, -logits_to_keep:], decoding=self.config.skips)
        if shift_labels is not None:
            gate_values = gates if self.config.ponder_loss_on == "probability" else pondered.gate_logits
            chunk = self.config.vocabulary_chunk_tokens
            if attention_mask is not None:
                # Before the first token of a row lies padding, whose label would be that token.
                shift_labels = shift_labels.masked_fill(~attention_mask[:, -shift_labels.shape[1] :].bool(), -100)
            labelled = shift_labels != -100
            if torch.is_grad_enabled():
                ce_loss = self.lm_head(pondered.hidden, labels=shift_labels, reduction="mean", chunk_tokens=chunk)
            else:
                nll = self.lm_head(pondered.hidden, labels=shift_labels, chunk_tokens=chunk)
                ce_loss = nll.sum() / labelled.sum().clamp(min=1)
            labelled = labelled.to(gate_values.device)
            if hold_depth:
                threshold, closing = self.config.halt_threshold, ponder_weight >= 0
                deciding = pondered.gate_logits[..., : self.config.max_passes - 1]  # one on the last pass stops nothing
                pushed = depth_loss(deciding, pondered.depths, ponder_fraction, threshold, closing, labelled)
            else:
                pushed = ponder_loss(gate_values, ponder_fraction, labelled)
            loss = ce_loss + abs(ponder_weight) * pushed
        return AdaPonderOutput(
            loss=loss,
            ce_loss=ce_loss,
            ponder_loss=pushed,
            logits=logits,
            nll=nll,
            gates=gates,
            gate_logits=pondered.gate_logits,
            depths=pondered.depths,
            past_key_values=cache,
        )

    def _check_inputs(self, input_ids: torch.Tensor, cache: Any, imposed_depths: torch.Tensor | None) -> None:
        shape = tuple(input_ids.shape)
        if not input_ids.numel():
            raise ValueError(f"input_ids is of shape {shape}: there is no token to read")
        if imposed_depths is not None and tuple(imposed_depths.shape) != shape:
            raise ValueError(f"imposed_depths is of shape {tuple(imposed_depths.shape)}: input_ids is of shape {shape}")
        if cache is None:
            return
        if not isinstance(cache, AdaPonderCache if self.config.skips else FullPassCache):
            raise ValueError(
                f"past_key_values is a {type(cache).__name__}: halting {self.config.halting} needs new_cache()"
            )
        if isinstance(cache, AdaPonderCache) and cache.batch_size not in (-1, shape[0]):
            raise ValueError(f"past_key_values holds {cache.batch_size} rows, input_ids has {shape[0]}")
        if torch.is_grad_enabled() and self.training:
            raise ValueError("a cache is given in training: keys and values in it would carry no gradient")
