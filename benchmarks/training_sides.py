"""The training steps that are compared, for time and for memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.shapes import config_of, network

CHUNK = 256
SIDES: dict[str, tuple[int, str]] = {
    # name: tokens whose logits are held at once (0: all), activation checkpointing
    "all logits at once": (0, "none"),
    "logits in chunks": (CHUNK, "none"),
    "logits in chunks, MLP recomputed": (CHUNK, "mlp"),
    "logits in chunks, layers recomputed": (CHUNK, "layer"),
    "logits in chunks, passes recomputed": (CHUNK, "pass"),
}
SINGLE = "single pass, all logits at once"
SINGLE_CHUNKED = "single pass, logits in chunks"


def training_steps(chosen: Any) -> dict[str, Callable[[], None]]:
    """By side a function that takes one optimizer step on the same rows; the weights move a little every time."""
    generator = torch.Generator().manual_seed(chosen.seed)
    ponders, single = _trainer(chosen, 4), _trainer(chosen, 1)
    rows = torch.randint(1, ponders[0].config.vocab_size, (chosen.rows, chosen.tokens + 1), generator=generator)
    rows = rows.to(chosen.device)
    steps = {name: _step(*ponders, rows, chunk, kind) for name, (chunk, kind) in SIDES.items()}
    steps[SINGLE] = _step(*single, rows, 0, "none")
    steps[SINGLE_CHUNKED] = _step(*single, rows, CHUNK, "none")
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
