"""What micro-batches take in networks of any depth, from runs of shallow ones (`launch.plan.activations`).

In each stretch of a micro-batch memory grows by the same amount with every layer: two runs, with three layers and with
four, give every other number. The highest of all stretches is another one in a deep network than in a shallow one. With
rows it grows so too, once a vocabulary chunk is full, but for the first few of them (a test holds it to 3 %); the
recipe's own micro batch is run as it is.
"""

from __future__ import annotations

import torch

from launch.plan.activations import FakeNetwork, MicroBatchMemory
from pipeline.model import AdaPonderConfig
from pipeline.recipe import Recipe
from pipeline.recipe_train import Phase
from pipeline.trained_parameters import is_trained

_SHALLOW = (3, 4)
"""Layers."""
_FULL_CHUNKS = 8
"""Vocabulary chunks that fill the larger of the two micro-batches from which others are told."""


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
        self._own = train.micro_batch
        self._full = max(1, -(-train.vocabulary_chunk_tokens // self._seq_len))
        """Rows that fill a vocabulary chunk."""
        self._networks: dict[int, FakeNetwork] = {}
        self._known: dict[tuple[str, int, int], MicroBatchMemory] = {}

    def of(self, checkpointing: str, rows: int) -> MicroBatchMemory:
        """What `rows` rows take."""
        if rows == self._own or rows <= self._full:
            return self._exactly(checkpointing, rows)
        small, large = (self._exactly(checkpointing, count) for count in (self._full, _FULL_CHUNKS * self._full))
        return _line(small, large, (rows - self._full) / ((_FULL_CHUNKS - 1) * self._full))

    def _exactly(self, checkpointing: str, rows: int) -> MicroBatchMemory:
        first = self._run(checkpointing, self._layers[0], rows)
        if len(self._layers) == 1:
            return first
        second = self._run(checkpointing, self._layers[1], rows)
        step = self._layers[1] - self._layers[0]
        return _line(first, second, (self._config.num_hidden_layers - self._layers[0]) / step)

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


def _line(first: MicroBatchMemory, second: MicroBatchMemory, where: float) -> MicroBatchMemory:
    """The straight line through `first` at 0 and `second` at 1, at `where`."""

    def at(one: int, other: int) -> int:
        return round(one + where * (other - one))

    def all_at(some: tuple[int, ...], others: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(at(one, other) for one, other in zip(some, others, strict=True))

    return MicroBatchMemory(
        at(first.forward, second.forward),
        at(first.gradients, second.gradients),
        all_at(first.peaks, second.peaks),
        all_at(first.peaks_beside_sums, second.peaks_beside_sums),
    )
