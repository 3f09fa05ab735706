"""What micro-batches take in networks of any depth, from runs of shallow ones (`launch.plan.activations`).

Memory grows by the same amount with every layer: two runs, with two layers and with three, give every other number.
With rows it does not: with few of them the high point lies where the gradients are, with many where activations are.
"""

from __future__ import annotations

from dataclasses import fields

import torch

from launch.plan.activations import FakeNetwork, MicroBatchMemory
from pipeline.model import AdaPonderConfig
from pipeline.recipe import Recipe
from pipeline.recipe_train import Phase
from pipeline.trained_parameters import is_trained

_SHALLOW = (2, 3)
"""Layers."""


class MicroBatches:
    """The micro-batches of one phase of a recipe."""

    def __init__(self, recipe: Recipe, config: AdaPonderConfig, phase: Phase) -> None:
        train = recipe.train
        self._config, self._phase, self._seq_len = config, phase, recipe.tokenize.seq_len
        self._dtype = torch.bfloat16 if train.precision == "bf16" else torch.float32
        self._halting = ("skip" if train.skip_halted else "masked") if phase.halting else "none"
        # Patterns may name layers one by one, so that no layer stands for another.
        by_layer = phase.trained in ("all", "gates") and config.num_hidden_layers > max(_SHALLOW)
        self._layers = _SHALLOW if by_layer else (config.num_hidden_layers,)
        self._networks: dict[int, FakeNetwork] = {}
        self._known: dict[tuple[str, int, int], MicroBatchMemory] = {}

    def of(self, checkpointing: str, rows: int) -> MicroBatchMemory:
        """What `rows` rows take."""
        runs = [self._run(checkpointing, layers, rows) for layers in self._layers]
        if len(runs) == 1:
            return runs[0]
        low, high = self._layers
        return _line(*runs, (self._config.num_hidden_layers - low) / (high - low))

    def _run(self, checkpointing: str, layers: int, rows: int) -> MicroBatchMemory:
        key = (checkpointing, layers, rows)
        if key not in self._known:
            if layers not in self._networks:
                fields_of_it = {**self._config.to_dict(), "num_hidden_layers": layers}
                config = type(self._config).from_dict(fields_of_it)
                config._attn_implementation = self._config._attn_implementation
                trained = self._phase.trained
                self._networks[layers] = FakeNetwork(config, self._dtype, lambda name: is_trained(trained, name))
            self._known[key] = self._networks[layers].micro_batch(
                rows, self._seq_len, checkpointing, self._halting, ponder=self._phase.ponder_weight > 0
            )
        return self._known[key]


def _line(at_0: MicroBatchMemory, at_1: MicroBatchMemory, where: float) -> MicroBatchMemory:
    numbers = {}
    for field in fields(MicroBatchMemory):
        first, second = getattr(at_0, field.name), getattr(at_1, field.name)
        numbers[field.name] = round(first + where * (second - first))
    return MicroBatchMemory(**numbers)
