"""How a trained network is run where nothing is trained: halted tokens are skipped, if it may be.

A checkpoint keeps the plain path in its configuration, since training goes on from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.model import AdaPonderConfig, AdaPonderForCausalLM


def inference_halting(config: AdaPonderConfig) -> str:
    """`halting` that gives the same results in the least time: skip, where tokens halt and then stay as they are."""
    return "skip" if config.halts and config.kv_reuse and config.freeze_halted else config.halting


@contextmanager
def run_as(model: AdaPonderForCausalLM, halting: str) -> Iterator[None]:
    """Within the block the network halts in this way; after it as before."""
    before = model.config.halting
    model.config.halting = halting
    try:
        yield
    finally:
        model.config.halting = before
