"""Activations and gradients, against what the network really allocates and against runs at full depth."""

from __future__ import annotations

import gc

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from launch.plan.activations import FakeNetwork
from launch.plan.micro_batches import MicroBatches
from launch.plan.network import planned_config
from pipeline.model import AdaPonderForCausalLM
from pipeline.recipe import Recipe
from pipeline.recipe_reader import read_recipe

SMALL = [
    *("model.backbone.hidden_size=32", "model.backbone.intermediate_size=128", "model.backbone.vocab_size=512"),
    *("tokenize.tokenizer.train_vocab_size=512", "tokenize.seq_len=64"),
]


def recipe_with(*overrides: str) -> Recipe:
    return read_recipe("quickstart", [*SMALL, *overrides])


@pytest.mark.parametrize("checkpointing", ["none", "activation", "mlp", "layer", "pass"])
@pytest.mark.parametrize("skip", ["false", "true"])
def test_layers_beyond_the_fourth_follow_from_those_before(checkpointing, skip):
    recipe = recipe_with("model.backbone.num_hidden_layers=6", f"train.skip_halted={skip}")
    config, _ = planned_config(recipe)
    phase = recipe.train.phases[-1]
    whole = FakeNetwork(config, torch.float32, lambda name: True)
    for rows in (1, 8):
        halting = "skip" if skip == "true" else "masked"
        exact = whole.micro_batch(rows, recipe.tokenize.seq_len, checkpointing, halting, ponder=True)
        own = recipe.model_copy(update={"train": recipe.train.model_copy(update={"micro_batch": rows})})
        told = MicroBatches(own, config, phase).of(checkpointing, rows)
        assert told.gradients == exact.gradients
        assert told.forward == exact.forward
        assert told.peak == exact.peak
        assert told.peak_beside_sums == exact.peak_beside_sums


@pytest.mark.parametrize("checkpointing", ["none", "layer"])
def test_rows_beyond_a_full_chunk_follow_from_two_micro_batches(checkpointing):
    recipe = recipe_with("train.micro_batch=1")
    config, _ = planned_config(recipe)
    batches = MicroBatches(recipe, config, recipe.train.phases[-1])
    whole = FakeNetwork(config, torch.float32, lambda name: True)
    # Four rows of 64 tokens fill the chunk of 256.
    for rows in (6, 12, 50):
        exact = whole.micro_batch(rows, recipe.tokenize.seq_len, checkpointing, "masked", ponder=True)
        assert batches.of(checkpointing, rows).peak == pytest.approx(exact.peak, rel=0.03)


@pytest.mark.parametrize("checkpointing", ["none", "activation", "mlp", "layer", "pass"])
@pytest.mark.parametrize("chunk", [0, 16])
def test_what_is_kept_for_backward_is_what_a_real_network_keeps(checkpointing, chunk):
    recipe = recipe_with(f"train.vocabulary_chunk_tokens={chunk}")
    config, _ = planned_config(recipe)
    told = MicroBatches(recipe, config, recipe.train.phases[-1]).of(checkpointing, 2)
    torch.manual_seed(0)
    model = AdaPonderForCausalLM(config).train()
    model.set_attn_implementation("sdpa")
    model.config.halting = "masked"
    model.set_activation_checkpointing(checkpointing)
    tokens = torch.randint(1, 512, (2, 64))
    known = _storages([*model.parameters(), *model.buffers(), tokens])
    with _Allocated() as allocated:
        loss = model(tokens, shift_labels=tokens, ponder_weight=0.1, ponder_fraction=0.1).loss
        kept = allocated.bytes_alive(known)
    assert loss is not None
    assert told.forward == pytest.approx(kept, rel=0.01)
    loss.backward()
    gradients = sum(weight.grad.nbytes for weight in model.parameters() if weight.grad is not None)
    assert told.gradients == pytest.approx(gradients, rel=0.001)


def test_frozen_weights_have_no_gradients_and_keep_less():
    recipe = recipe_with()
    gates = recipe.train.phases[0].model_copy(update={"train": "gates"})
    config, _ = planned_config(recipe)
    everything = MicroBatches(recipe, config, recipe.train.phases[0]).of("none", 2)
    only_gates = MicroBatches(recipe, config, gates).of("none", 2)
    assert only_gates.gradients < 0.2 * everything.gradients
    assert only_gates.peak < 0.8 * everything.peak


class _Allocated(TorchDispatchMode):
    """Storages that operations gave out, held weakly."""

    def __init__(self) -> None:
        super().__init__()
        self._given: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._given[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return result

    def bytes_alive(self, known: set[int]) -> int:
        gc.collect()
        return sum(
            size for key, (reference, size) in self._given.items() if key not in known and not reference.expired()
        )


def _storages(tensors: list[torch.Tensor]) -> set[int]:
    return {tensor.untyped_storage()._cdata for tensor in tensors}
