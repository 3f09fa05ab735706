"""The training steps that are compared, for time and for memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.shapes import MAX_PASSES, config_of, network

CHUNK = 256
SIDES: dict[str, tuple[int, str]] = {
    # name: tokens whose logits are held at once (0: all), activation checkpointing
    "all logits at once": (0, "none"),
    "logits in chunks": (CHUNK, "none"),
    "logits in chunks, activation functions recomputed": (CHUNK, "activation"),
    "logits in chunks, MLPs recomputed": (CHUNK, "mlp"),
    "logits in chunks, layers recomputed": (CHUNK, "layer"),
    "logits in chunks, passes recomputed": (CHUNK, "pass"),
}
MORE = ("logits in chunks, MLPs recomputed", "logits in chunks, passes recomputed")
"""Sides that are measured where they are asked for (--all): each round of them takes its time."""
SINGLE = "single pass, all logits at once"
SINGLE_CHUNKED = "single pass, logits in chunks"


def training_steps(chosen: Any, single_pass: bool) -> dict[str, Callable[[], None]]:
    """By side a function that takes one optimizer step on the same rows; the weights move a little every time.

    single_pass: the backbone run once, too. Every network has taken a step before, so that the optimizer's states are
    there.
    """
    generator = torch.Generator().manual_seed(chosen.seed)
    ponders = _trainer(chosen, MAX_PASSES)
    rows = torch.randint(1, ponders[0].config.vocab_size, (chosen.rows, chosen.tokens + 1), generator=generator)
    rows = rows.to(chosen.device)
    sides = {name: side for name, side in SIDES.items() if chosen.all or name not in MORE}
    steps = {name: _step(*ponders, rows, chunk, kind) for name, (chunk, kind) in sides.items()}
    _step(*ponders, rows[:, :33], CHUNK, "none")()
    if single_pass:
        single = _trainer(chosen, 1)
        steps[SINGLE] = _step(*single, rows, 0, "none")
        steps[SINGLE_CHUNKED] = _step(*single, rows, CHUNK, "none")
        _step(*single, rows[:, :33], CHUNK, "none")()
    return steps


def _trainer(chosen: Any, max_passes: int) -> tuple[Any, torch.optim.Optimizer]:
    model = network(config_of(chosen.shape, max_passes=max_passes), chosen).train()
    # Without `fused`, the optimizer's own temporaries would be the peak.
    return model, torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)


def _step(
    model: Any, optimizer: torch.optim.Optimizer, rows: torch.Tensor, chunk: int, checkpointing: str
) -> Callable[[], None]:
    def run() -> None:
        model.config.vocabulary_chunk_tokens = chunk
        model.set_activation_checkpointing(checkpointing)
        loss = model(rows[:, :-1], shift_labels=rows[:, 1:], ponder_weight=0.1, ponder_fraction=0.1).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run
