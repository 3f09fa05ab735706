"""What the network says to a fixed input: noted in every checkpoint, and asked again after loading.

A checkpoint can be read without an error and still not be the network that was saved: states in another order, a group
left out, weights of another step. The logits tell.
"""

from __future__ import annotations

import math
import platform
from pathlib import Path
from typing import Any, cast

import torch

from pipeline.checkpoint import Checkpoint, LogitsFingerprint
from pipeline.errors import WorldError
from pipeline.recipe import Recipe
from pipeline.training.agreement import read_together
from pipeline.training.engine import Engine

_TOKENS = 16
"""Length of the input: enough for attention to matter, next to nothing beside a step."""
_LAST = 8
TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}
"""How far logits may be off where rounding is not the same, as a share of their root mean square."""


def take_fingerprint(engine: Engine, recipe: Recipe, world_size: int, zero_stage: int) -> LogitsFingerprint:
    """The network's fingerprint, with every pass and no halting; collective, with the same input on every rank.

    Mode and halting are as before afterwards, and no random number is drawn. Raises `WorldError` on every rank when
    logits are not finite on any.
    """
    model, config = cast(Any, engine), engine.module.config
    halting, training = config.halting, engine.module.training
    length = min(_TOKENS, config.max_tokens)
    tokens = (torch.arange(length) * 7919 + 17) % config.vocab_size
    config.halting = "none"  # a threshold would turn a difference in the last digit into another depth
    model.eval()
    try:
        # Compiled layers would be compiled once more, for this shape.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            logits = model(input_ids=tokens[None].to(engine.device)).logits[0].double().cpu()
    finally:
        config.halting = halting
        model.train(training)
    found = LogitsFingerprint(
        last=logits[-1, :_LAST].tolist(),
        total=logits.sum().item(),
        squares=logits.square().sum().item(),
        count=logits.numel(),
        computed_with={
            "ranks": str(world_size),
            "zero_stage": str(zero_stage),
            "precision": recipe.train.precision,
            "attention": recipe.train.attention,
            "vocabulary_chunk_tokens": str(recipe.train.vocabulary_chunk_tokens),
            "torch": torch.__version__,
            "threads": str(torch.get_num_threads()),
            "device": engine.device.type,
            "processor": _processor(engine.device),
        },
    )
    return read_together(lambda: _finite(found), engine.device)


def check_fingerprint(engine: Engine, checkpoint: Checkpoint, now: LogitsFingerprint) -> None:
    """Compare a loaded network with what its checkpoint says of it; collective.

    Raises `WorldError` naming the checkpoint, on every rank, when it is another network on any.
    """

    def check() -> None:
        saved = checkpoint.state.fingerprint
        if saved is not None and (difference := other_network(saved, now)):
            raise WorldError(
                f"{checkpoint.path} does not give back the network that was saved: {difference}; `adaponder checkpoint "
                "verify` reads its files, and with it moved away the same command continues from the one before"
            )

    read_together(check, engine.device)


def other_network(saved: LogitsFingerprint, loaded: LogitsFingerprint) -> str | None:
    """What says that these are not of one network; None where nothing does.

    Equal to the last digit where rounding depends on the same things, on a CPU; within `TOLERANCE` otherwise. Under
    ZeRO 3 the order in which weights arrive may move them in memory, and on a GPU a library may choose another kernel:
    neither is a reason to refuse a sound checkpoint.
    """
    if (saved.count, len(saved.last)) != (loaded.count, len(loaded.last)):
        return f"it has {loaded.count} logits for {saved.count}"
    how = saved.computed_with
    exact = how == loaded.computed_with and how["device"] == "cpu" and int(how["zero_stage"]) < 3
    scale = math.sqrt(saved.squares / saved.count)
    precision = max(TOLERANCE[found.computed_with["precision"]] for found in (saved, loaded))
    allowed = 0.0 if exact else precision * scale
    worst = max(abs(a - b) for a, b in zip(saved.last, loaded.last, strict=True))
    mean = abs(saved.total - loaded.total) / saved.count
    spread = abs(math.sqrt(loaded.squares / loaded.count) - scale)
    if max(worst, mean, spread) <= allowed:
        return None
    return (
        f"logits are off by {worst:.3g}, their mean by {mean:.3g}, their root mean square by {spread:.3g}, where "
        f"{allowed:.3g} would be rounding"
    )


def _finite(found: LogitsFingerprint) -> LogitsFingerprint:
    if not math.isfinite(found.squares):
        raise WorldError("the network's logits are not finite: nothing after the last checkpoint is kept")
    return found


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
