"""torch.compile of the layers changes nothing but speed."""

from __future__ import annotations

import os
import shutil

import pytest
import torch

from tests.model.tiny_adaponder import halting_config, random_model, random_tokens

COMPILER = os.environ.get("CXX", "g++")


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which(COMPILER) is None, reason=f"torch.compile on a CPU needs {COMPILER}, which is not here"
)
def test_compiled_layers_agree_forward_and_backward() -> None:
    """With layers recomputed in backward: compiled code must keep the same tensors the second time."""
    tokens = random_tokens(2, 12, seed=71)
    found = {}
    for compiled in (False, True):
        model = random_model(halting_config(num_hidden_layers=3, max_passes=3), seed=71, dtype=torch.float32).train()
        model.set_activation_checkpointing("layer")
        if compiled:
            torch.compiler.reset()
            model.compile_layers()
        for _ in range(2):
            model.zero_grad()
            output = model(tokens, labels=tokens, ponder_weight=0.7, ponder_fraction=0.3)
            output.loss.backward()
        found[compiled] = (output, {name: parameter.grad for name, parameter in model.named_parameters()})
    plain, fast = found[False], found[True]
    assert len(plain[0].depths.unique()) > 1, "some tokens were meant to halt"
    assert torch.equal(plain[0].depths, fast[0].depths)
    assert (plain[0].loss - fast[0].loss).abs() < 1e-5
    for name, grad in plain[1].items():
        assert (fast[1][name] - grad).abs().max() < 1e-5, name
