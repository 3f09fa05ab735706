"""Which parameters a phase trains: all, the gates, or those whose names fit a pattern."""

from __future__ import annotations

import difflib
from fnmatch import fnmatchcase

import torch

from pipeline.errors import UserError
from pipeline.model import AdaPonderConfig
from pipeline.recipe_train import Phase

_WORDS = {"all": ["*"], "gates": ["gates.*"]}


def is_trained(trained: str, name: str) -> bool:
    """Whether the parameter called `name` is in the set `trained` (`Phase.trained`)."""
    return any(fnmatchcase(name, pattern) for pattern in _WORDS.get(trained) or trained.split())


def check_trained(phases: list[Phase], config: AdaPonderConfig) -> None:
    """`UserError` for a pattern that fits no parameter of the network, with the nearest names."""
    patterns = {
        pattern: f"train.phases.{i}.train"
        for i, phase in enumerate(phases)
        if not isinstance(phase.train, str)
        for pattern in phase.train
    }
    if not patterns:
        return
    from pipeline.model import AdaPonderForCausalLM

    # Names and no weights: nothing is allocated.
    with torch.device("meta"):
        names = [name for name, _ in AdaPonderForCausalLM(config).named_parameters()]
    for pattern, place in patterns.items():
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(f"{place}: no parameter fits {pattern!r}; near it: {', '.join(_nearest(pattern, names))}")


def _nearest(pattern: str, names: list[str]) -> list[str]:
    """Names like `pattern`; where it ends in a star, also of modules with everything in them."""
    modules = {name[:end] + "*" for name in names for end in range(1, len(name)) if name[end - 1] == "."}
    candidates = [*names, *sorted(modules)] if pattern.endswith("*") else names
    return difflib.get_close_matches(pattern, candidates, n=3, cutoff=0.0)
