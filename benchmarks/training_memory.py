"""Peak memory of a training step over weights and optimizer states.

    python -m benchmarks.training_memory

On a GPU the allocator counts. On a CPU the kernel does (resident memory and its peak, Linux): the C library is told to
give every large block back at once, so that what it keeps for later is not taken for what the step needs. Gradients are
in the figure.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.measurement import Report, arguments, give_memory_back, parsed, ratios, resident, spread
from benchmarks.training_sides import CHUNK, SINGLE, SINGLE_CHUNKED, training_steps

BOUNDS = {"logits in chunks, activation functions recomputed": 0.4}
CHECKPOINTED_BOUND = 1.4


def main() -> None:
    parser = arguments("Peak memory of a training step.")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=2048, help="tokens a row")
    parser.add_argument("--all", action="store_true", help="every kind of activation checkpointing")
    chosen = parsed(parser)
    if not chosen.device.startswith("cuda"):
        give_memory_back()
    steps = training_steps(chosen, single_pass=True)
    gc.freeze()  # what is there stays: the collection before each step looks at what the steps leave
    peaks: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(chosen.rounds):
        for name, step in steps.items():
            peaks[name].append(_peak_of(step, chosen.device) / 1e6)

    report = Report("training_memory", chosen, {"rows": chosen.rows, "tokens": chosen.tokens, "chunk_tokens": CHUNK})
    for name in steps:
        bounds = {"bound_over_all_logits_at_once": BOUNDS[name]} if name in BOUNDS else {}
        if "layers" in name or "passes" in name:
            bounds["bound_over_single_pass"] = CHECKPOINTED_BOUND
        report.line(
            name,
            peak_megabytes=spread(peaks[name]),
            memory_over_all_logits_at_once=spread(ratios(peaks[name], peaks["all logits at once"])),
            memory_over_single_pass=spread(ratios(peaks[name], peaks[SINGLE])),
            memory_over_single_pass_in_chunks=spread(ratios(peaks[name], peaks[SINGLE_CHUNKED])),
            **bounds,
        )
    report.close()


def _peak_of(step: Callable[[], None], device: str) -> int:
    """Bytes at the step's peak over those before it."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts again from now
    before = resident("VmRSS")
    step()
    return resident("VmHWM") - before


if __name__ == "__main__":
    main()
