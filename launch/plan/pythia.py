"""Pythia's networks in numbers (arXiv 2304.01373, table 1), so that a plan needs no file of theirs."""

from __future__ import annotations

import re

from pipeline.recipe import Architecture


def _pythia(hidden: int, layers: int, heads: int, vocabulary: int = 50304) -> Architecture:
    return Architecture(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
    )


PYTHIA = {
    "70M": _pythia(512, 6, 8),
    "160M": _pythia(768, 12, 12),
    "410M": _pythia(1024, 24, 16),
    "1B": _pythia(2048, 16, 8),
    "1.4B": _pythia(2048, 24, 16),
    "2.8B": _pythia(2560, 32, 32),
    "6.9B": _pythia(4096, 32, 32, 50432),
    "12B": _pythia(5120, 36, 40, 50688),
}


def pythia_by_name(backbone: str) -> tuple[str, Architecture] | None:
    """The size and the network of a checkpoint whose name ends in pythia-SIZE or pythia-SIZE-deduped; None: none is."""
    match = re.search(r"pythia-(\d+(?:\.\d+)?[mb])(?:-deduped)?/?$", backbone.lower())
    size = match[1].upper() if match else ""
    return (size, PYTHIA[size]) if size in PYTHIA else None
