"""What backward computes again changes memory and time, not one number; and neither does skipping in training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.model.layers import CHECKPOINTING
from tests.model.tiny_adaponder import halting_config, random_model, random_tokens

PONDER = {"ponder_weight": 0.7, "ponder_fraction": 0.3}


def loss_and_gradients(model: Any, tokens: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(tokens, **{"labels": tokens, **PONDER, **inputs}).loss
    loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(grad is not None for grad in found.values()), "under ZeRO a parameter left out is wrong or hangs"
    return loss.detach(), {name: grad.clone() for name, grad in found.items()}


def assert_same(one: Any, other: Any, tolerance: float) -> None:
    assert torch.allclose(one[0], other[0], rtol=0, atol=tolerance)
    for name, grad in one[1].items():
        scale = grad.abs().max().clamp(min=1)
        assert (other[1][name] - grad).abs().max() / scale < tolerance, name


@pytest.mark.parametrize("kind", CHECKPOINTING[1:])
@pytest.mark.parametrize("halting", ["none", "masked", "skip"])
@pytest.mark.parametrize("fields", [{}, {"use_parallel_residual": False, "gate_on_last_pass": True}], ids=str)
def test_no_number_changes(kind: str, halting: str, fields: dict[str, Any]) -> None:
    model = random_model(halting_config(**fields), seed=51).train()
    tokens = random_tokens(3, 12, seed=51)
    model.config.halting = halting
    if halting != "none":
        assert len(model(tokens).depths.unique()) == 4, "tokens were meant to halt at every depth"
    kept = loss_and_gradients(model, tokens)
    model.set_activation_checkpointing(kind)
    assert_same(kept, loss_and_gradients(model, tokens), 1e-12)


MEMBERS = [{"feedback": "hidden_state", "gating": "open"}, {"pause_tokens": 1, "max_passes": 1}, {"shared_gate": True}]


@pytest.mark.parametrize("kind", CHECKPOINTING[1:])
@pytest.mark.parametrize("halting", ["masked", "skip"])
@pytest.mark.parametrize("fields", MEMBERS, ids=str)
@pytest.mark.parametrize("chunk", [0, 5])
def test_no_number_of_another_member_changes(kind: str, halting: str, fields: dict[str, Any], chunk: int) -> None:
    """Nor with the vocabulary in chunks, whose tokens are those that have a label: no pauses."""
    model = random_model(halting_config(**fields, halting=halting, vocabulary_chunk_tokens=0), seed=51).train()
    tokens = random_tokens(3, 12, seed=51)
    kept = loss_and_gradients(model, tokens)
    model.config.vocabulary_chunk_tokens = chunk
    model.set_activation_checkpointing(kind)
    assert_same(kept, loss_and_gradients(model, tokens), 1e-12)


@pytest.mark.parametrize("fields", [{}, *MEMBERS], ids=str)
def test_dropout_falls_the_same_again(fields: dict[str, Any]) -> None:
    model = random_model(halting_config(hidden_dropout=0.2, attention_dropout=0.2, **fields), seed=52).train()
    tokens = random_tokens(2, 12, seed=52)
    found = {}
    for halting in ("masked", "skip"):
        model.config.halting = halting
        for kind in CHECKPOINTING:
            model.set_activation_checkpointing(kind)
            torch.manual_seed(0)
            found[kind] = loss_and_gradients(model, tokens)
            assert_same(found["none"], found[kind], 1e-12)


class Storages(TorchDispatchMode):
    """Every block of memory that an operation gave out while this was on, but for those that were there before."""

    def __init__(self, before: list[torch.Tensor]) -> None:
        super().__init__()
        self.before = {tensor.untyped_storage()._cdata for tensor in before}
        self.given: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.before:
                storage = tensor.untyped_storage()
                self.given[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return result

    def alive(self) -> int:
        """Bytes that are still held."""
        return sum(size for reference, size in self.given.values() if not reference.expired())


@pytest.mark.parametrize("halting", ["masked", "skip"])
def test_what_a_forward_keeps_for_backward(halting: str) -> None:
    """Against all that is kept without checkpointing: memory that is alive between forward and backward.

    At full depth. What remains are the layers' or passes' inputs, the keys and values that the next pass reads, and
    the gates' insides.
    """
    sizes = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 6, "num_attention_heads": 2}
    model = random_model(halting_config(**sizes), seed=53, dtype=torch.float32).train()
    model.config.halting = halting
    tokens = random_tokens(2, 32, seed=53)
    kept = {}
    for kind in CHECKPOINTING:
        model.set_activation_checkpointing(kind)
        with Storages([*model.parameters(), *model.buffers(), tokens]) as storages:
            loss = model(tokens, labels=tokens, imposed_depths=torch.full_like(tokens, 4)).loss
            kept[kind] = storages.alive()
        loss.backward()
        del loss
        assert storages.alive() == 0, "autograd keeps something for good"
    shares = {kind: size / kept["none"] for kind, size in kept.items()}
    assert shares["activation"] < 0.85
    assert shares["mlp"] < 0.65
    assert shares["layer"] < 0.27
    if halting == "masked":
        assert shares["pass"] < 0.21
    else:
        # A packed pass is computed again layer by layer.
        assert kept["pass"] == kept["layer"]


def test_transformers_switch() -> None:
    model = random_model(halting_config(), seed=54).train()
    tokens = random_tokens(2, 8, seed=54)
    kept = loss_and_gradients(model, tokens)
    assert not model.is_gradient_checkpointing
    model.gradient_checkpointing_enable({"use_reentrant": True})
    assert model.is_gradient_checkpointing
    assert model.gpt_neox.checkpointing == "layer"
    assert_same(kept, loss_and_gradients(model, tokens), 1e-12)
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing
    with pytest.raises(
        ValueError, match="activation checkpointing 'block': it must be one of none, activation, mlp, layer, pass"
    ):
        model.set_activation_checkpointing("block")


@st.composite
def halting_patterns(draw: Any) -> tuple[Any, torch.Tensor, dict[str, Any]]:
    """A network, tokens and inputs: learned halting, imposed depths, or every token halted after the first pass."""
    rows, n, seed = draw(st.integers(1, 3)), draw(st.integers(1, 10)), draw(st.integers(0, 2**31))
    fields = {
        "max_passes": draw(st.integers(1, 4)),
        "gate_on_last_pass": draw(st.booleans()),
        "gate_bias": draw(st.sampled_from([0.0, 0.0, -30.0])),
        "mixture_top_k": draw(st.sampled_from([0, 0, 5])),
        "vocabulary_chunk_tokens": draw(st.sampled_from([0, 3, 256])),
    }
    model = random_model(halting_config(**fields), seed=seed).train()
    tokens = random_tokens(rows, n, seed=seed)
    inputs: dict[str, Any] = {}
    imposed = draw(st.sampled_from(["no", "random", "one", "a row"]))
    if imposed != "no":
        generator = torch.Generator().manual_seed(seed)
        depths = torch.randint(1, fields["max_passes"] + 1, (rows, n), generator=generator)
        if imposed == "one":
            depths[:] = 1
        elif imposed == "a row":
            depths[0] = 1
        inputs["imposed_depths"] = depths
    if draw(st.booleans()):
        mask = torch.ones_like(tokens)
        for row in range(rows):
            mask[row, : draw(st.integers(0, n - 1))] = 0
        # What padding predicts is nobody's: no position of it has a label.
        labels = torch.nn.functional.pad(tokens[:, 1:], (0, 1), value=-100).masked_fill(mask == 0, -100)
        inputs |= {"attention_mask": mask, "shift_labels": labels, "labels": None}
    return model, tokens, inputs


@settings(max_examples=30, deadline=None)
@given(case=halting_patterns(), kind=st.sampled_from(CHECKPOINTING))
def test_gradients_of_skipping_are_those_of_the_plain_path(case: Any, kind: str) -> None:
    model, tokens, inputs = case
    plain = loss_and_gradients(model, tokens, **inputs)
    model.config.halting = "skip"
    model.set_activation_checkpointing(kind)
    assert_same(plain, loss_and_gradients(model, tokens, **inputs), 1e-10)


def test_no_token_left_after_the_first_pass_still_reaches_every_parameter() -> None:
    model = random_model(halting_config(halting="skip"), seed=55).train()
    tokens = random_tokens(2, 8, seed=55)
    inputs = {"imposed_depths": torch.ones_like(tokens)}
    assert model(tokens, **inputs).depths.unique().tolist() == [1]
    skipped = loss_and_gradients(model, tokens, **inputs)
    model.config.halting = "masked"
    assert_same(loss_and_gradients(model, tokens, **inputs), skipped, 1e-12)
