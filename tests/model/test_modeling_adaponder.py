"""The network against transformers' GPT-NeoX, a few-line PonderLM, and the method written out by per-token loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from pipeline.model import AdaPonderForCausalLM
from tests.model.family_references import BACKBONE
from tests.model.reference_pondering import ponder_row
from tests.model.tiny_adaponder import VOCABULARY, halting_config, random_model, random_tokens, tiny_config


def stock_twin(model: AdaPonderForCausalLM, dtype: torch.dtype) -> Any:
    """transformers' own network with the same backbone weights and attention implementation."""
    backbone: dict[str, Any] = {name: getattr(model.config, name) for name in BACKBONE}
    backbone["attn_implementation"] = model.config._attn_implementation
    stock: Any = GPTNeoXForCausalLM(GPTNeoXConfig(**backbone))
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("gates.")}
    stock.to(dtype).load_state_dict(weights)
    return stock.eval()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("parallel_residual", [True, False])
@pytest.mark.parametrize("padded", [False, True])
def test_one_pass_is_gpt_neox_bit_for_bit(attention: str, parallel_residual: bool, padded: bool) -> None:
    config = tiny_config(max_passes=1, attn_implementation=attention, use_parallel_residual=parallel_residual)
    model = random_model(config, seed=1, dtype=torch.float32)
    stock = stock_twin(model, torch.float32)
    tokens = random_tokens(3, 11, seed=2)
    mask = torch.ones_like(tokens)
    if padded:
        mask[0, :4] = 0
        mask[1, :1] = 0
    labels = tokens.masked_fill(mask == 0, -100)
    if padded:
        labels[0, 4] = labels[
            1, 1
        ] = -100  # what padding would predict: we leave it out of the loss, the stock does not
    ours = model(tokens, attention_mask=mask, labels=labels, return_logits=True)
    theirs = stock(tokens, attention_mask=mask, labels=labels)
    assert torch.equal(ours.logits, theirs.logits)
    torch.testing.assert_close(ours.loss, theirs.loss)
    assert ours.ponder_loss.item() == 0.0
    assert ours.gates.shape == (3, 11, 0)
    assert (ours.depths == 1).all()
    ours.loss.backward()
    theirs.loss.backward()
    gradients = {name: parameter.grad for name, parameter in stock.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("passes", "scale", "initial_scale"), [(2, 1.0, 1.0), (4, 4.0, 1.0), (4, 4.0, 3.0)])
def test_open_gates_are_ponderlm(passes: int, scale: float, initial_scale: float) -> None:
    config = tiny_config(max_passes=passes, gating="open", embed_scale=scale, initial_embed_scale=initial_scale)
    model = random_model(config, seed=3)
    stock = stock_twin(model, torch.float64)
    tokens = random_tokens(2, 9, seed=4)

    table = stock.gpt_neox.embed_in.weight * scale
    embeds = table[tokens] * initial_scale
    for _ in range(passes - 1):
        probabilities = stock(inputs_embeds=embeds).logits.softmax(-1)
        embeds = embeds + probabilities @ table
    expected = stock(inputs_embeds=embeds).logits

    output = model(tokens)
    torch.testing.assert_close(output.logits, expected, rtol=1e-10, atol=1e-10)
    assert (output.depths == passes).all()


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 2),
    n=st.integers(1, 6),
    seed=st.integers(0, 2**31),
    fields=st.fixed_dictionaries(
        {
            "max_passes": st.integers(1, 4),
            "halting": st.sampled_from(["masked", "masked", "none"]),
            "gating": st.sampled_from(["learned", "learned", "open"]),
            "gate_on_last_pass": st.booleans(),
            "shared_gate": st.booleans(),
            "kv_reuse": st.booleans(),
            "freeze_halted": st.booleans(),
            "embed_scale": st.sampled_from([1.0, 2.0]),
            "initial_embed_scale": st.sampled_from([1.0, 3.0]),
            "use_parallel_residual": st.booleans(),
            "attn_implementation": st.sampled_from(["eager", "sdpa"]),
        }
    ),
)
def test_it_is_the_method_token_by_token(rows: int, n: int, seed: int, fields: dict[str, Any]) -> None:
    fields["shared_gate"] &= fields["gating"] == "learned" and fields["max_passes"] > 1
    model = random_model(halting_config(**fields), seed)
    tokens = random_tokens(rows, n, seed=seed)
    with torch.no_grad():
        output = model(tokens)
        weights = model.state_dict()
        expected = [ponder_row(weights, model.config, row) for row in tokens.tolist()]
    assert output.depths.tolist() == [row.depths for row in expected]
    # transformers' eager softmax is float32 in a float64 model too.
    near = 1e-9 if model.config._attn_implementation == "sdpa" else 1e-4
    logits, gates = torch.stack([row.logits for row in expected]), torch.stack([row.gates for row in expected])
    torch.testing.assert_close(output.logits, logits, rtol=near, atol=near)
    torch.testing.assert_close(output.gates, gates, rtol=near, atol=near)


def test_tokens_halt_at_every_depth_in_these_tests() -> None:
    model = random_model(halting_config(), seed=5)
    assert torch.bincount(model(random_tokens(4, 30, seed=5)).depths.flatten(), minlength=5)[1:].min() > 0


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), passes=st.integers(2, 5), last=st.booleans())
def test_the_depth_is_how_long_the_gates_stayed_above_the_threshold(seed: int, passes: int, last: bool) -> None:
    """Monotone: a gate that rises again wakes no token."""
    model = random_model(halting_config(max_passes=passes, gate_on_last_pass=last), seed)
    output = model(random_tokens(2, 12, seed=seed))
    above = output.gates[..., : passes - 1] >= model.config.halt_threshold
    assert torch.equal(output.depths, 1 + above.long().cumprod(-1).sum(-1))
    torch.testing.assert_close(output.gates, output.gate_logits.sigmoid())


@pytest.mark.parametrize(("biases", "depth"), [((9, 9, 9), 4), ((9, 9, -9), 3), ((9, -9, 9), 2), ((-9, 9, 9), 1)])
def test_the_gate_of_a_pass_decides_that_pass(biases: tuple[float, ...], depth: int) -> None:
    model = random_model(halting_config(gate_output_std=0.0), seed=6)
    with torch.no_grad():
        for gate, bias in zip(model.gates, biases, strict=True):
            gate.get_parameter("logit.weight").zero_()
            gate.get_parameter("logit.bias").fill_(bias)
    assert (model(random_tokens(2, 7, seed=6)).depths == depth).all()


def test_without_halting_the_gates_still_weigh() -> None:
    tokens = random_tokens(2, 10, seed=7)
    model = random_model(halting_config(halting="none"), seed=7)
    weighed = model(tokens)
    assert (weighed.depths == 4).all()
    model.config.halting = "masked"
    model.config.halt_threshold = 0.0
    torch.testing.assert_close(model(tokens).logits, weighed.logits)
    model.config.halt_threshold = 0.4
    assert (model(tokens).logits - weighed.logits).abs().max() > 1e-3


@pytest.mark.parametrize("field", ["kv_reuse", "freeze_halted"])
def test_the_fields_of_halting_make_a_difference(field: str) -> None:
    tokens = random_tokens(2, 10, seed=8)
    model = random_model(halting_config(), seed=8)
    with_it = model(tokens).logits
    setattr(model.config, field, False)
    assert (model(tokens).logits - with_it).abs().max() > 1e-3


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), changed=st.integers(1, 9), attention=st.sampled_from(["eager", "sdpa"]))
def test_a_token_changes_nothing_before_itself(seed: int, changed: int, attention: str) -> None:
    model = random_model(halting_config(attn_implementation=attention), seed)
    tokens = random_tokens(2, 10, seed=seed)
    other = tokens.clone()
    other[:, changed] = (other[:, changed] + 5) % VOCABULARY
    one, two = model(tokens), model(other)
    assert torch.equal(one.depths[:, :changed], two.depths[:, :changed])
    torch.testing.assert_close(one.logits[:, :changed], two.logits[:, :changed])
    torch.testing.assert_close(one.gates[:, :changed], two.gates[:, :changed])
    assert (one.logits[:, changed] - two.logits[:, changed]).abs().max() > 1e-6


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), padding=st.integers(1, 6), attention=st.sampled_from(["eager", "sdpa"]))
def test_left_padding_changes_nothing(seed: int, padding: int, attention: str) -> None:
    # transformers' eager softmax is float32 in a float64 model too, and has no number for a row of padding there.
    dtype = torch.float64 if attention == "sdpa" else torch.float32
    model = random_model(halting_config(attn_implementation=attention), seed, dtype)
    tokens = random_tokens(2, 10, seed=seed)
    mask = torch.ones_like(tokens)
    mask[0, :padding] = 0
    together = model(tokens, attention_mask=mask)
    alone = model(tokens[:1, padding:])
    assert torch.equal(together.depths[:1, padding:], alone.depths)
    torch.testing.assert_close(together.logits[:1, padding:], alone.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together.gates[:1, padding:], alone.gates, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together.logits[1:], model(tokens[1:]).logits, rtol=1e-5, atol=1e-5)


def test_padding_is_no_part_of_the_loss() -> None:
    model = random_model(halting_config(), seed=9)
    tokens = random_tokens(1, 10, seed=9)
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), tokens], dim=1)
    mask = (torch.arange(14) >= 4).long().unsqueeze(0)
    arguments = {"ponder_weight": 0.3, "ponder_fraction": 0.5}
    plain = model(tokens, shift_labels=tokens, **arguments)
    labels = padded.masked_fill(mask == 0, -100)
    with_padding = model(padded, attention_mask=mask, shift_labels=labels, **arguments)
    torch.testing.assert_close(with_padding.ce_loss, plain.ce_loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(with_padding.ponder_loss, plain.ponder_loss, rtol=1e-5, atol=1e-6)


def test_padding_behind_the_tokens_is_no_part_of_the_loss() -> None:
    # As training gives the last row of a data set: no attention mask, only labels to ignore.
    model = random_model(halting_config(), seed=9)
    tokens = random_tokens(1, 10, seed=9)
    padded = torch.cat([tokens, torch.zeros(1, 4, dtype=torch.long)], dim=1)
    labels = torch.cat([tokens, torch.full((1, 4), -100)], dim=1)
    arguments = {"ponder_weight": 0.3, "ponder_fraction": 0.5}
    plain = model(tokens, shift_labels=tokens, **arguments)
    with_padding = model(padded, shift_labels=labels, **arguments)
    torch.testing.assert_close(with_padding.ponder_loss, plain.ponder_loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(with_padding.loss, plain.loss, rtol=1e-5, atol=1e-6)


def test_the_loss_and_its_parts() -> None:
    model = random_model(halting_config(), seed=10)
    row = random_tokens(2, 9, seed=10)
    aligned = row[:, 1:].clone()
    aligned[0, 3] = -100
    output = model(row[:, :-1], shift_labels=aligned, ponder_weight=0.3, ponder_fraction=0.25, return_logits=True)
    log_probabilities = output.logits.log_softmax(-1)
    nats = [-log_probabilities[b, t, aligned[b, t]] for b in range(2) for t in range(8) if aligned[b, t] >= 0]
    torch.testing.assert_close(output.ce_loss, torch.stack(nats).mean())
    labelled = aligned != -100
    smallest = output.gates[labelled].flatten().sort().values[:11]  # a quarter of 15 labelled tokens x 3 gates
    torch.testing.assert_close(output.ponder_loss, smallest.mean())
    torch.testing.assert_close(output.loss, output.ce_loss + 0.3 * output.ponder_loss)

    model.config.ponder_loss_on = "logit"
    on_logits = model(row[:, :-1], shift_labels=aligned, ponder_weight=0.3, ponder_fraction=0.25)
    torch.testing.assert_close(on_logits.ponder_loss, output.gate_logits[labelled].flatten().sort().values[:11].mean())
    torch.testing.assert_close(on_logits.ce_loss, output.ce_loss)


def test_labels_are_shifted_inside() -> None:
    model = random_model(halting_config(), seed=11)
    row = random_tokens(2, 9, seed=11)
    shifted = torch.cat([row[:, 1:], torch.full((2, 1), -100)], dim=1)
    torch.testing.assert_close(model(row, labels=row).loss, model(row, shift_labels=shifted).loss)


def test_a_batch_without_labels_left_has_no_loss_and_no_nan() -> None:
    model = random_model(halting_config(), seed=12)
    row = random_tokens(1, 5, seed=12)
    assert model(row, shift_labels=torch.full_like(row, -100)).loss.item() == 0.0


def test_logits_to_keep_keeps_the_last() -> None:
    model = random_model(halting_config(), seed=13)
    tokens = random_tokens(2, 7, seed=13)
    torch.testing.assert_close(model(tokens, logits_to_keep=2).logits, model(tokens).logits[:, -2:])


@pytest.mark.parametrize("arguments", [("labels", "shift_labels"), ("labels", "logits_to_keep")])
def test_arguments_that_contradict_each_other_are_refused(arguments: tuple[str, str]) -> None:
    tokens = random_tokens(1, 5, seed=0)
    values = {"labels": tokens, "shift_labels": tokens, "logits_to_keep": 1}
    with pytest.raises(ValueError, match=arguments[1]):
        random_model(tiny_config(), seed=0)(tokens, **{name: values[name] for name in arguments})


def test_a_tuple_where_one_is_asked_for() -> None:
    model = random_model(halting_config(), seed=14)
    tokens = random_tokens(2, 5, seed=14)
    loss, *_, depths = model(tokens, labels=tokens, return_dict=False)
    torch.testing.assert_close(loss, model(tokens, labels=tokens).loss)
    assert depths.shape == (2, 5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_bfloat16(attention: str) -> None:
    config = halting_config(attn_implementation=attention, halting="none")
    model = random_model(config, seed=15, dtype=torch.float32)
    tokens = random_tokens(2, 12, seed=15)
    exact = model(tokens, labels=tokens, ponder_weight=0.1, ponder_fraction=0.5)
    model = model.to(torch.bfloat16)
    for halting in ("masked", "none"):
        model.config.halting = halting
        output = model(tokens, labels=tokens, ponder_weight=0.1, ponder_fraction=0.5, return_logits=True)
        assert output.logits.dtype == torch.bfloat16
        for part in (output.loss, output.ce_loss, output.ponder_loss, output.gates, output.gate_logits):
            assert part.dtype == torch.float32
        assert output.depths.dtype == torch.int64
        output.loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    torch.testing.assert_close(output.loss, exact.loss, rtol=0.02, atol=0.02)
