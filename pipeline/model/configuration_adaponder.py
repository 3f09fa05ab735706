"""The configuration: GPT-NeoX's fields and those of the method, so that a checkpoint says which reading it follows.

The papers behind the fields are AdaPonderLM (arXiv 2603.01914, "A") and PonderLM (arXiv 2505.20674, "P1").
"""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

from transformers import GPTNeoXConfig

HALTING = ("none", "masked", "skip")
GATING = ("learned", "open")
PONDER_LOSS_ON = ("probability", "logit")
FEEDBACK = ("mixture", "hidden_state")


class AdaPonderConfig(GPTNeoXConfig):
    """A GPT-NeoX (Pythia) network that is run up to `max_passes` times, with a gate between the passes.

    `halting`, `vocabulary_chunk_tokens`, `mixture_top_k` and `halt_threshold` are read at every forward and may be
    changed on a living model (`model.config.halting = "none"`), as the phases of training do; the others are read when
    it is built. A bad value raises a ValueError of one line.
    """

    model_type = "adaponder"

    max_passes: int = 4
    """K: how often the transformer runs (A section 3)."""
    halt_threshold: float = 1e-4
    """tau: a token halts after a pass whose gate falls below it."""
    halting: str = "masked"
    """none: gates weigh, no token halts; masked: every pass runs over all tokens and masks out the halted ones (the
    plain path); skip: the same results from a pass over the active tokens only."""
    gating: str = "learned"
    """learned: one gate MLP a pass; open: s fixed at 1, no gates, nothing halts - the fixed-depth PonderLM (P1)."""
    feedback: str = "mixture"
    """What a pass hands to the next: mixture, added to the embedding (A, P1); hidden_state: the last layer's output in
    the embedding's place, the final LayerNorm once at the end - the Loop Transformer, which needs open gates."""
    pause_tokens: int = 0
    """P: learned pause tokens after every token, whose last one predicts the next token; needs max_passes 1."""
    shared_gate: bool = False
    """True: one gate MLP serves every gated pass, in the place of one for each (A 4.4.3)."""
    gate_on_last_pass: bool = False
    """True puts a gate after the last pass too; it weighs nothing and can only serve the ponder loss."""
    ponder_loss_on: str = "probability"
    """What the ponder loss pushes down: the gate's probability s, or its logit."""
    kv_reuse: bool = True
    """A halted token's keys and values are those of its last active pass."""
    freeze_halted: bool = True
    """A halted token's hidden state stays that of its last active pass."""
    embed_scale: float = 1.0
    """Factor on the embedding matrix in both uses, token and mixture; P1 trains with sqrt(hidden_size)."""
    initial_embed_scale: float = 1.0
    """A further factor on the token embedding alone; P1 takes 3 from 410M on."""
    gate_bias: float = 3.0
    """Start of the gates' output bias: the gate's first logit (3: s = 0.95)."""
    gate_output_std: float = 1e-3
    """Start of the gates' output weights. Near zero, so that a gate starts at `gate_bias` for every token (1e-3 spreads
    the logits by 0.02 at 512 hidden units and 0.05 at 2560); not zero, so that tokens are told apart and the gate's
    first layer gets a gradient from the first step."""

    mixture_top_k: int = 0
    """How many of the likeliest tokens enter the mixture, their probabilities made to sum to 1; 0: the whole vocabulary
    (A, P1)."""
    vocabulary_chunk_tokens: int = 256
    """How many tokens' logits are held at once, in mixture and loss; 0: all. It changes memory and time only."""

    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.validate_architecture()
        for name, allowed in (
            ("halting", HALTING),
            ("gating", GATING),
            ("ponder_loss_on", PONDER_LOSS_ON),
            ("feedback", FEEDBACK),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}: it must be one of {', '.join(allowed)}")
        for name in ("gate_on_last_pass", "kv_reuse", "freeze_halted", "shared_gate"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}: it must be true or false")
        for name in ("halt_threshold", "embed_scale", "initial_embed_scale", "gate_bias", "gate_output_std"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f"{name} is {value!r}: it must be a finite number")
        if isinstance(self.max_passes, bool) or not isinstance(self.max_passes, int) or self.max_passes < 1:
            raise ValueError(f"max_passes is {self.max_passes!r}: it must be a whole number of at least 1")
        for name in ("mixture_top_k", "vocabulary_chunk_tokens", "pause_tokens"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"{name} is {value!r}: it must be a whole number of at least 0")
        if self.mixture_top_k > self.vocab_size:
            raise ValueError(f"mixture_top_k is {self.mixture_top_k}: the vocabulary has {self.vocab_size} entries")
        self.check_skipping()
        self._check_member()
        if not 0 <= self.halt_threshold < 1:
            raise ValueError(f"halt_threshold is {self.halt_threshold!r}: it must be at least 0 and below 1")
        for name in ("embed_scale", "initial_embed_scale"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}: it must be above 0")
        if self.gate_output_std < 0:
            raise ValueError(f"gate_output_std is {self.gate_output_std!r}: it must not be negative")
        if self.tie_word_embeddings:
            raise ValueError("tie_word_embeddings is true: the method keeps lm_head and the embedding apart (P1)")

    def check_skipping(self) -> None:
        """Raises ValueError where halted tokens are to be skipped and yet to change."""
        if self.skips and not (self.kv_reuse and self.freeze_halted):
            raise ValueError(
                "halting is skip: it needs kv_reuse and freeze_halted, so that halted tokens stay as they are"
            )

    def _check_member(self) -> None:
        """Raises ValueError where fields of two members of the family contradict each other (method section 8)."""
        if self.feedback == "hidden_state" and self.gating != "open":
            raise ValueError("feedback is hidden_state: it needs gating open, since gates weigh a mixture")
        if self.feedback == "hidden_state" and self.mixture_top_k:
            raise ValueError(f"feedback is hidden_state: there is no mixture for mixture_top_k {self.mixture_top_k}")
        if self.pause_tokens and self.max_passes > 1:
            raise ValueError(f"pause_tokens is {self.pause_tokens}: it needs max_passes 1, not {self.max_passes}")
        if 1 + self.pause_tokens > self.max_position_embeddings:
            raise ValueError(
                f"pause_tokens is {self.pause_tokens}: not one token and its pauses go into max_position_embeddings "
                f"{self.max_position_embeddings}"
            )
        if self.shared_gate and not self.gated_passes:
            raise ValueError("shared_gate is true: it needs gating learned and max_passes of at least 2")

    @property
    def positions_per_token(self) -> int:
        """Positions that a token takes in the transformer: its own and those of its pauses."""
        return 1 + self.pause_tokens

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest text whose positions are all below `max_position_embeddings`."""
        return self.max_position_embeddings // self.positions_per_token

    @property
    def halts(self) -> bool:
        """Whether tokens can halt."""
        return self.halting != "none" and self.gating == "learned"

    @property
    def skips(self) -> bool:
        """Whether passes run over the active tokens only."""
        return self.halting == "skip"

    @property
    def gated_passes(self) -> int:
        """After how many passes a gate is asked; after none where nothing can halt or weigh."""
        if self.gating == "open" or self.max_passes == 1:
            return 0
        return self.max_passes if self.gate_on_last_pass else self.max_passes - 1

    @property
    def num_gates(self) -> int:
        """How many gate MLPs the network has: one for each gated pass, or one that all of them share."""
        return min(1, self.gated_passes) if self.shared_gate else self.gated_passes

    @classmethod
    def ponder_fields(cls) -> frozenset[str]:
        """Names of the fields that the method adds to GPT-NeoX's."""
        return frozenset(field.name for field in fields(cls)) - {field.name for field in fields(GPTNeoXConfig)}

    @classmethod
    def from_gpt_neox(cls, gpt_neox_config: GPTNeoXConfig, **ponder_fields: Any) -> AdaPonderConfig:
        """The configuration of a network on the given backbone.

        Takes over GPT-NeoX's own fields and nothing else that a checkpoint's config.json may carry. `ponder_fields`
        are fields of the method. Raises ValueError for a name that is none and for a bad value.
        """
        cls.check_ponder_fields(ponder_fields)
        backbone = {field.name: getattr(gpt_neox_config, field.name) for field in fields(GPTNeoXConfig)}
        for name in ("architectures", "transformers_version", "use_cache"):
            del backbone[name]
        # A dictionary that the two configurations shared would be changed in both.
        backbone["rope_parameters"] = dict(backbone["rope_parameters"])
        return cls(**backbone, **ponder_fields)

    @classmethod
    def check_ponder_fields(cls, ponder_fields: dict[str, Any]) -> None:
        """Raises ValueError where a name is not a field of the method: the backbone's fields come with its weights."""
        unknown = sorted(set(ponder_fields) - cls.ponder_fields())
        if unknown:
            raise ValueError(
                f"not a field of the method: {', '.join(unknown)} (fields: {', '.join(sorted(cls.ponder_fields()))})"
            )
