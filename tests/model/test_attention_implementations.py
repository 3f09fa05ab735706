"""Whatever attention implementation transformers offers, the plain path gives the same."""

from __future__ import annotations

import shutil

import pytest
import torch
from transformers.utils.import_utils import is_flash_attn_2_available

from tests.model.tiny_adaponder import halting_config, random_model, random_tokens


def test_eager_and_sdpa_agree_in_training() -> None:
    model = random_model(halting_config(), seed=61).train()
    tokens = random_tokens(3, 12, seed=61)
    found = {}
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        model.zero_grad()
        output = model(tokens, labels=tokens, ponder_weight=0.7, ponder_fraction=0.3)
        output.loss.backward()
        found[attention] = (output, [parameter.grad for parameter in model.parameters()])
    one, other = found["sdpa"], found["eager"]
    assert len(one[0].depths.unique()) > 2, "some tokens were meant to halt"
    assert torch.equal(one[0].depths, other[0].depths)
    # Eager attention takes its softmax in float32, in a float64 model as well.
    assert (one[0].loss - other[0].loss).abs() < 1e-6
    for left, right in zip(one[1], other[1], strict=True):
        assert torch.allclose(left, right, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="flex_attention compiles its kernel: no g++ here")
def test_flex_attention_agrees_without_gradients() -> None:
    """torch has no backward pass of it on a CPU."""
    model = random_model(halting_config(), seed=62, dtype=torch.float32)
    tokens, mask = random_tokens(3, 12, seed=62), torch.ones(3, 12, dtype=torch.long)
    mask[0, :4] = 0
    found = {}
    with torch.no_grad():
        for attention in ("sdpa", "flex_attention"):
            model.set_attn_implementation(attention)
            found[attention] = model(tokens, attention_mask=mask)
    one, other = found["sdpa"], found["flex_attention"]
    real = mask.bool()
    assert len(one.depths[real].unique()) > 2, "some tokens were meant to halt"
    assert torch.equal(one.depths[real], other.depths[real])
    assert torch.allclose(one.logits[real], other.logits[real], rtol=0, atol=1e-5)


@pytest.mark.skipif(not is_flash_attn_2_available(), reason="flash-attn is not installed, or there is no GPU")
def test_flash_attention_2_agrees_in_training() -> None:
    model = random_model(halting_config(hidden_size=64), seed=63, dtype=torch.bfloat16).cuda().train()
    tokens = random_tokens(3, 32, seed=63).cuda()
    losses = {}
    for attention in ("sdpa", "flash_attention_2"):
        model.set_attn_implementation(attention)
        model.zero_grad()
        # Depths are imposed: a gate near the threshold falls on either side of it by bf16's rounding.
        output = model(tokens, labels=tokens, imposed_depths=tokens % 4 + 1)
        output.loss.backward()
        losses[attention] = output.loss.item()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert losses["flash_attention_2"] == pytest.approx(losses["sdpa"], rel=0.01)
