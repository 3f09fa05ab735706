"""Writing text with the other members of the family: with their cache as without it, whatever way of decoding."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tests.model.test_generation import MEMBERS, left_padded, restless_writer, write, writer

BOTH = pytest.mark.parametrize("halting", ["masked", "skip"])
EACH = pytest.mark.parametrize("member", MEMBERS, ids=str)


@BOTH
@EACH
def test_cached_text_is_the_argmax_of_the_forward(member: dict[str, Any], halting: str) -> None:
    model = restless_writer(halting, **member)
    batch, mask = left_padded([3, 6], seed=94)
    expected, expected_mask = batch, mask
    with torch.no_grad():
        for _ in range(12):
            last = model(expected, attention_mask=expected_mask).logits[:, -1:].argmax(-1)
            expected = torch.cat([expected, last], dim=1)
            expected_mask = torch.cat([expected_mask, torch.ones_like(last)], dim=1)
    assert len(expected[:, 6:].unique()) > 1
    found = write(model, batch, new=12, attention_mask=mask, return_dict_in_generate=True, return_depths=True)
    assert torch.equal(found.sequences, expected)
    # The last token is written and not read; pauses are not counted.
    assert found.past_key_values.get_seq_length() == expected.shape[1] - 1
    if halting == "skip" and not member.get("shared_gate"):
        assert (found.depths == model.config.max_passes).all()
    assert found.depths.shape == (2, 12)


@BOTH
@EACH
def test_a_returned_cache_is_written_on_from(member: dict[str, Any], halting: str) -> None:
    model = restless_writer(halting, **member)
    batch, mask = left_padded([4, 2], seed=95)
    first = write(model, batch, new=5, attention_mask=mask, return_dict_in_generate=True)
    mask = torch.cat([mask, torch.ones(2, 5, dtype=torch.long)], dim=1)
    expected = write(model, first.sequences, attention_mask=mask, use_cache=False)
    assert torch.equal(
        write(model, first.sequences, attention_mask=mask, past_key_values=first.past_key_values), expected
    )


@BOTH
@EACH
@pytest.mark.parametrize("chunk", [1, 4])
def test_a_prompt_may_be_read_in_chunks(member: dict[str, Any], halting: str, chunk: int) -> None:
    model = restless_writer(halting, **member)
    batch, mask = left_padded([9, 4], seed=96)
    expected = write(model, batch, attention_mask=mask)
    assert torch.equal(write(model, batch, attention_mask=mask, prefill_chunk_size=chunk), expected)


@BOTH
@EACH
def test_drafts_that_are_dropped_leave_no_trace(member: dict[str, Any], halting: str) -> None:
    """Prompt lookup and assisted decoding crop the cache, by tokens."""
    model = restless_writer(halting, **member)
    prompt = torch.arange(1, 6).repeat(1, 3)
    expected = write(model, prompt, new=24)
    found = write(model, prompt, new=24, prompt_lookup_num_tokens=4, return_dict_in_generate=True)
    assert torch.equal(found.sequences, expected)
    assert found.past_key_values.get_seq_length() == expected.shape[1] - 1
    drafter = copy.deepcopy(model)
    with torch.no_grad():
        drafter.lm_head.weight += 0.3 * torch.randn(drafter.lm_head.weight.shape, dtype=torch.float64)
    assert torch.equal(write(model, prompt, new=24, assistant_model=drafter), expected)


@BOTH
def test_a_cache_with_pauses_counts_tokens(halting: str) -> None:
    model = writer(halting, pause_tokens=3, max_passes=1)
    cache = model.new_cache()
    tokens = torch.arange(1, 8).unsqueeze(0)
    with torch.no_grad():
        whole = model(tokens).logits
        model(tokens[:, :5], past_key_values=cache)
        assert cache.get_seq_length() == 5
        cache.crop(-2)
        assert cache.get_seq_length() == 3
        torch.testing.assert_close(model(tokens[:, 3:], past_key_values=cache).logits, whole[:, 3:])
        cache.reset()
        assert cache.get_seq_length() == 0
        torch.testing.assert_close(model(tokens, past_key_values=cache).logits, whole)
