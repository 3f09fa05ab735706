"""Every member of the family against its plain formula: logits, both losses, and the gradient of every weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.model import AdaPonderForCausalLM
from tests.model import family_references as references
from tests.model.tiny_adaponder import VOCABULARY, halting_config, random_model, random_tokens

LOOP = {"feedback": "hidden_state", "gating": "open"}
PAUSE = {"pause_tokens": 3, "max_passes": 1}
SHARED = {"shared_gate": True}


@dataclass(frozen=True)
class Member:
    fields: dict[str, Any] = field(default_factory=dict)
    reference: Callable[..., references.Reference] = references.token_by_token
    fraction: float = 0.4
    """Of the gate values in the ponder loss."""


FAMILY = {
    "vanilla": Member({"max_passes": 1}, references.vanilla),
    "PonderLM": Member({"gating": "open"}, references.ponderlm),
    "AdaPonderLM": Member(),
    "Loop Transformer": Member(LOOP, references.loop_transformer),
    "pause tokens": Member(PAUSE, references.pause_tokens),
    "one shared gate": Member(SHARED),
    "without bottom-K": Member(fraction=1.0),
    "without K/V reuse": Member({"kv_reuse": False, "freeze_halted": True}),
    "K/V reuse only": Member({"freeze_halted": False}),
    "gate on the last pass": Member({"gate_on_last_pass": True}),
    "ponder loss on logits": Member({"ponder_loss_on": "logit"}),
}


@pytest.mark.parametrize("parallel", [True, False], ids=["parallel", "sequential"])
@pytest.mark.parametrize("name", FAMILY)
def test_a_member_is_its_formula(name: str, parallel: bool) -> None:
    member = FAMILY[name]
    config = halting_config(use_parallel_residual=parallel, max_position_embeddings=64, **member.fields)
    model = random_model(config, seed=91)
    tokens = random_tokens(2, 7, seed=91)
    output = model(tokens, labels=tokens, ponder_weight=0.3, ponder_fraction=member.fraction, return_logits=True)
    output.loss.backward()
    if config.halts and config.gated_passes:
        assert len(output.depths.unique()) >= 3, "tokens were meant to halt"

    weights = {key: value.detach().clone().requires_grad_() for key, value in model.named_parameters()}
    expected = member.reference(weights, config, tokens)
    cross_entropy, pushed_down = references.losses(expected, tokens, config.ponder_loss_on, member.fraction)
    (cross_entropy + 0.3 * pushed_down).backward()
    near: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-8}
    torch.testing.assert_close(output.logits, expected[0], **near)
    torch.testing.assert_close(output.gate_logits, expected[1], **near)
    torch.testing.assert_close(output.ce_loss, cross_entropy, **near)
    torch.testing.assert_close(output.ponder_loss, pushed_down, **near)
    for key, parameter in model.named_parameters():
        given = weights[key].grad
        torch.testing.assert_close(parameter.grad, torch.zeros_like(parameter) if given is None else given, **near)


def test_the_family_is_whole() -> None:
    assert len(FAMILY) == 11


@pytest.mark.parametrize("fields", [LOOP, PAUSE], ids=str)
def test_a_factor_on_the_embedding_is_one_on_the_matrix(fields: dict[str, Any]) -> None:
    """Nothing else reads it, since there is no mixture; pauses are scaled as tokens are."""
    model = random_model(halting_config(**fields, embed_scale=2.0, initial_embed_scale=1.5), seed=84)
    plain = random_model(halting_config(**fields), seed=84)
    tokens = random_tokens(2, 6, seed=84)
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            if name.endswith(("embed_in.weight", "pause_in.weight")):
                weight *= 3.0
    torch.testing.assert_close(model(tokens).logits, plain(tokens).logits)


@pytest.mark.parametrize("member", FAMILY.values(), ids=FAMILY)
def test_what_is_saved_is_loaded(member: Member, tmp_path: Path) -> None:
    model = random_model(halting_config(**member.fields), seed=85, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    loaded = AdaPonderForCausalLM.from_pretrained(tmp_path)
    tokens = random_tokens(2, 8, seed=85)
    one, other = model(tokens), loaded(tokens)
    assert torch.equal(one.logits, other.logits)
    assert torch.equal(one.depths, other.depths)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), changed=st.integers(1, 6), member=st.sampled_from([LOOP, PAUSE, SHARED]))
def test_a_token_changes_nothing_before_itself(seed: int, changed: int, member: dict[str, Any]) -> None:
    model = random_model(halting_config(**member), seed)
    tokens = random_tokens(2, 7, seed=seed)
    other = tokens.clone()
    other[:, changed] = (other[:, changed] + 5) % VOCABULARY
    one, two = model(tokens).logits, model(other).logits
    torch.testing.assert_close(one[:, :changed], two[:, :changed])
    assert (one[:, changed] - two[:, changed]).abs().max() > 1e-6


@pytest.mark.parametrize("halting", ["masked", "skip"])
def test_pauses_are_no_part_of_what_goes_in_and_comes_out(halting: str) -> None:
    model = random_model(halting_config(**PAUSE, halting=halting), seed=86)
    tokens = random_tokens(2, 7, seed=86)
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    output = model(tokens, attention_mask=mask, labels=tokens, return_logits=True, use_cache=True)
    assert output.logits.shape == (2, 7, VOCABULARY)
    assert output.gates.shape == (2, 7, 0)
    assert output.depths.shape == (2, 7)
    assert output.past_key_values.get_seq_length() == 7
    # Row 0 has 3 labels and row 1 has 6; padding neither predicts nor is predicted.
    probabilities = output.logits.log_softmax(-1)
    nats = [-probabilities[0, t, tokens[0, t + 1]] for t in range(3, 6)]
    nats += [-probabilities[1, t, tokens[1, t + 1]] for t in range(6)]
    torch.testing.assert_close(output.loss, torch.stack(nats).mean())
    torch.testing.assert_close(output.logits[0, 3:], model(tokens[:1, 3:]).logits[0])
    assert model(tokens, logits_to_keep=2).logits.shape == (2, 2, VOCABULARY)


def test_one_gate_is_read_after_every_pass() -> None:
    model = random_model(halting_config(**SHARED, halting="none"), seed=87)
    assert {name.split(".")[1] for name, _ in model.named_parameters() if name.startswith("gates.")} == {"0"}
    tokens = random_tokens(2, 7, seed=87)
    output = model(tokens)
    assert output.gates.shape == (2, 7, 3)
    apart = random_model(halting_config(halting="none"), seed=88)
    weights = model.state_dict()
    for name in [name for name in weights if name.startswith("gates.0.")]:
        for number in ("1", "2"):
            weights[name.replace("gates.0.", f"gates.{number}.")] = weights[name]
    apart.load_state_dict(weights)
    assert torch.equal(apart(tokens).gates, output.gates)
