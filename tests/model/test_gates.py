"""The gate's last layer is exact where a token's halting hangs on it."""

from __future__ import annotations

import torch

from pipeline.model.gates import Gate


def _expected(gate: Gate, hidden: torch.Tensor) -> torch.Tensor:
    inner = torch.nn.functional.gelu(gate.dense_h_to_4h(hidden)).double()
    return inner @ gate.logit.weight.double()[0] + gate.logit.bias.double()


def test_the_logit_of_a_bfloat16_gate_is_float32() -> None:
    torch.manual_seed(0)
    gate = Gate(16).to(torch.bfloat16)
    hidden = torch.randn(2, 5, 16, dtype=torch.bfloat16)
    logit = gate(hidden)
    assert logit.shape == (2, 5)
    assert logit.dtype == torch.float32
    torch.testing.assert_close(logit.double(), _expected(gate, hidden), rtol=0, atol=1e-6)


def test_autocast_does_not_lower_it() -> None:
    torch.manual_seed(0)
    gate = Gate(16)
    hidden = torch.randn(2, 5, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logit = gate(hidden)
        expected = _expected(gate, hidden)
    assert logit.dtype == torch.float32
    torch.testing.assert_close(logit.double(), expected, rtol=0, atol=1e-6)
