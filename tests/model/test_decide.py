"""Depths decided by the caller while the passes run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.model.tiny_adaponder import halting_config, random_model, random_tokens


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    halting=st.sampled_from(["masked", "skip"]),
    labels=st.booleans(),
    padding=st.booleans(),
)
def test_it_is_what_the_same_depths_imposed_are(seed: int, halting: str, labels: bool, padding: bool):
    model = random_model(halting_config(halting=halting), seed=seed, dtype=torch.float64).eval()
    tokens = random_tokens(2, 5, seed=seed)
    imposed = torch.randint(1, model.config.max_passes + 1, (2, 5), generator=torch.Generator().manual_seed(seed))
    asked: list[int] = []

    def decide(i: int, gate_logits: torch.Tensor) -> torch.Tensor:
        assert gate_logits.shape == imposed.shape
        asked.append(i)
        return imposed > i + 1

    arguments: dict[str, Any] = {"labels": tokens, "return_logits": True} if labels else {}
    if padding:
        arguments["attention_mask"] = torch.ones_like(tokens)
        arguments["attention_mask"][1, :2] = 0
    real = arguments.get("attention_mask", torch.ones_like(tokens)).bool()
    with torch.no_grad():
        found = model(tokens, decide=decide, **arguments)
        expected = model(tokens, imposed_depths=imposed, **arguments)
    assert asked == sorted(set(asked)) and asked[0] == 0
    assert torch.equal(found.depths[real], imposed[real])
    assert torch.equal(found.logits[real], expected.logits[real])


@pytest.mark.parametrize("halting", ["masked", "skip"])
def test_it_sees_the_gates_of_the_passes_that_it_decided_on(halting: str):
    model = random_model(halting_config(halting=halting), seed=3, dtype=torch.float64).eval()
    tokens, seen = random_tokens(2, 6, seed=3), []

    def decide(i: int, gate_logits: torch.Tensor) -> torch.Tensor:
        seen.append(gate_logits)
        return gate_logits > gate_logits[gate_logits > -torch.inf].median()

    with torch.no_grad():
        depths = model(tokens, decide=decide).depths
        gates = model(tokens, imposed_depths=depths).gate_logits
    assert len(depths.unique()) > 1
    for i, of_pass in enumerate(seen):
        active = depths > i
        assert torch.equal(of_pass[active], gates[..., i][active])


def test_both_ways_at_once_are_refused():
    model = random_model(halting_config(halting="skip"), seed=1, dtype=torch.float64)
    tokens = random_tokens(1, 3, seed=1)
    with pytest.raises(ValueError, match="give one of them"):
        model(tokens, imposed_depths=torch.ones_like(tokens), decide=lambda i, gates: gates > 0)
