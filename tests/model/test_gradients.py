"""Gradients: right against finite differences, and present for every parameter in every mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.model.tiny_adaponder import halting_config, random_model, random_tokens

PONDER = {"ponder_weight": 0.7, "ponder_fraction": 0.3}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"kv_reuse": False},
        {"freeze_halted": False},
        {"halting": "none"},
        {"gating": "open", "max_passes": 3},
        {"ponder_loss_on": "logit", "gate_on_last_pass": True},
        {"embed_scale": 2.0, "initial_embed_scale": 3.0},
        {"feedback": "hidden_state", "gating": "open"},
        {"pause_tokens": 3, "max_passes": 1, "max_position_embeddings": 64},
        {"shared_gate": True},
    ],
    ids=str,
)
def test_they_agree_with_finite_differences(fields: dict[str, Any]) -> None:
    """Each parameter along a random direction: (L(p + ev) - L(p - ev)) / 2e against the gradient's share of v.

    Through the mixture, the gates, K/V reuse and the ponder loss. The halting of every token must be the same at both
    ends, or the loss would have a step between them.
    """
    model = random_model(halting_config(**fields), seed=33)
    tokens = random_tokens(2, 12, seed=33)
    generator = torch.Generator().manual_seed(33)
    output = model(tokens, labels=tokens, **PONDER)
    output.loss.backward()
    if model.config.halting == "masked" and model.config.gating == "learned":
        # One gate for all passes says much the same after each of them.
        assert len(output.depths.unique()) >= (2 if model.config.shared_gate else model.config.max_passes)
    step = 1e-6
    for name, parameter in model.named_parameters():
        direction = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        losses = []
        with torch.no_grad():
            for sign in (step, -step):
                parameter.add_(sign * direction)
                moved = model(tokens, labels=tokens, **PONDER)
                assert torch.equal(moved.depths, output.depths), name
                losses.append(moved.loss.item())
                parameter.add_(-sign * direction)
        measured = (losses[0] - losses[1]) / (2 * step)
        assert parameter.grad is not None
        assert measured == pytest.approx((parameter.grad * direction).sum().item(), rel=1e-5, abs=1e-7), name


MODES = [
    {"max_passes": 1},
    {"max_passes": 2, "gate_on_last_pass": True},
    {"gating": "open"},
    {"halting": "none"},
    {"halting": "masked"},
    {"kv_reuse": False, "freeze_halted": False},
    {"ponder_loss_on": "logit", "gate_on_last_pass": True},
    {"feedback": "hidden_state", "gating": "open"},
    {"pause_tokens": 2, "max_passes": 1},
    {"shared_gate": True},
]


@pytest.mark.parametrize("fields", MODES, ids=str)
@pytest.mark.parametrize("ponder", [{}, {"ponder_weight": 0.1, "ponder_fraction": 0.1}], ids=["no loss", "loss"])
@pytest.mark.parametrize("gate_bias", [0.0, -30.0, 30.0])
def test_every_parameter_takes_part_in_every_step(
    fields: dict[str, Any], ponder: dict[str, float], gate_bias: float
) -> None:
    """Also where all tokens halt at once, or none does: under ZeRO a parameter left out is wrong or hangs."""
    model = random_model(halting_config(gate_bias=gate_bias, **fields), seed=22, dtype=torch.float32).train()
    tokens = random_tokens(2, 8, seed=22)
    model(tokens[:, :-1], shift_labels=tokens[:, 1:], **ponder).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_a_frozen_backbone_leaves_gradients_to_the_gates_alone() -> None:
    model = random_model(halting_config(halting="none"), seed=23)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("gates."))
    tokens = random_tokens(2, 8, seed=23)
    model(tokens, labels=tokens).loss.backward()
    for name, parameter in model.named_parameters():
        if name.startswith("gates."):
            assert parameter.grad is not None
            assert parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name


def test_cross_entropy_alone_does_not_reach_the_gates_of_halted_tokens() -> None:
    """What makes halting early in training a one-way street, and why it starts with the second phase."""
    model = random_model(halting_config(gate_bias=-30.0), seed=24)
    tokens = random_tokens(2, 8, seed=24)
    model(tokens, labels=tokens).loss.backward()
    assert all(parameter.grad.abs().sum() == 0 for parameter in model.gates.parameters())
