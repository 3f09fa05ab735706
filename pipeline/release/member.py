"""What a model card says of the kind of network that it is about: which member of the family (docs/method.md)."""

from __future__ import annotations

from pipeline.model import AdaPonderConfig

PAPER = "https://arxiv.org/abs/2603.01914"
PONDERLM = "https://arxiv.org/abs/2505.20674"


def summary(config: AdaPonderConfig) -> str:
    """The card's first sentence."""
    passes = config.max_passes
    if config.pause_tokens:
        return (
            f"A causal language model that reads {config.pause_tokens} learned pause tokens after every token and "
            "predicts the next one from the last of them."
        )
    if passes == 1:
        return "A causal language model of one pass: a stock GPT-NeoX."
    if config.feedback == "hidden_state":
        return (
            f"A causal language model whose stack of layers runs {passes} times over its own output (Loop Transformer)."
        )
    if config.gating == "open":
        return (
            f"A causal language model that takes {passes} passes through its transformer for every token, and reads "
            f"what it expects next before each but the first ([PonderLM]({PONDERLM}))."
        )
    return (
        "A causal language model that decides, token by token, how many passes through its transformer it takes, up "
        f"to {passes} ([AdaPonderLM]({PAPER}))."
    )


def method(config: AdaPonderConfig) -> str:
    """How it computes, but for decoding."""
    passes = config.max_passes
    if config.pause_tokens:
        return (
            f"After every token stand {config.pause_tokens} pause tokens with embeddings of their own; the network "
            "adds them itself. It takes a single pass, and the state of a token's last pause predicts the next token. "
            f"A text of n tokens takes {config.positions_per_token} n positions."
        )
    if passes == 1:
        return "This network takes a single pass for every token: a stock GPT-NeoX."
    if config.feedback == "hidden_state":
        return (
            f"The whole stack of layers runs {passes} times, each time on its own output, with the final LayerNorm "
            "once at the end. No token halts."
        )
    if config.gating == "open":
        return (
            f"The same transformer runs {passes} times. After each pass the token's predicted distribution, as a "
            "mixture of embeddings, is added to its input. There are no gates, and no token halts."
        )
    halting = "In this checkpoint gates weigh the feedback, but no token halts."
    if config.halts:
        halting = f"A token whose gate falls below {config.halt_threshold:g} halts."
        if config.kv_reuse and config.freeze_halted:
            halting += " It keeps its state, its keys and values."
    gate = " One gate serves all passes." if config.shared_gate else ""
    return (
        f"The same transformer runs up to {passes} times. After each pass the token's predicted distribution, as a "
        f"mixture of embeddings weighted by a learned gate, is added to its input.{gate} {halting}"
    )
