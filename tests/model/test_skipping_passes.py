"""The skipping path under what users do to a network: adapters, autocast, resizing, caches carried about, mistakes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.model.tiny_adaponder import VOCABULARY, halting_config, random_model, random_tokens


@pytest.fixture
def model() -> Any:
    return random_model(halting_config(halting="skip"), seed=81)


def logits_of(model: Any, halting: str, tokens: torch.Tensor) -> torch.Tensor:
    model.config.halting = halting
    with torch.no_grad():
        return model(tokens).logits


class Adapted(nn.Module):
    """A linear layer with something added, which shows its `weight` as adapters do."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.weight, self.bias = base.weight, base.bias

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.base(rows) + rows.sum(-1, keepdim=True)


def test_an_adapter_is_not_passed_by(model: Any) -> None:
    for layer in model.gpt_neox.layers:
        layer.mlp.dense_h_to_4h = Adapted(layer.mlp.dense_h_to_4h)
        layer.attention.dense = Adapted(layer.attention.dense)
    tokens = random_tokens(1, 4, seed=81)
    torch.testing.assert_close(logits_of(model, "skip", tokens), logits_of(model, "masked", tokens))


def test_a_hook_is_called(model: Any) -> None:
    calls = []
    model.gpt_neox.layers[0].attention.dense.register_forward_hook(lambda *_: calls.append(1))
    logits_of(model, "skip", random_tokens(1, 2, seed=82))
    assert calls


@pytest.mark.parametrize("chunk", [0, 256])
def test_under_autocast(chunk: int) -> None:
    model = random_model(halting_config(halting="skip", vocabulary_chunk_tokens=chunk), seed=83, dtype=torch.float32)
    tokens = random_tokens(2, 5, seed=83)
    exact = model(tokens, labels=tokens).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(tokens, labels=tokens).loss
        with torch.no_grad():
            assert model(tokens).logits.isfinite().all()
    rough.backward()
    assert (rough - exact).abs() < 0.2


def test_a_resized_vocabulary(model: Any) -> None:
    tokens = random_tokens(2, 5, seed=84)
    before = logits_of(model, "skip", tokens)
    model.resize_token_embeddings(VOCABULARY + 4, mean_resizing=False)
    model.lm_head.weight.data[VOCABULARY:] = -1e4 * torch.sign(model.lm_head.weight.data[:1])
    for halting in ("masked", "skip"):
        after = logits_of(model, halting, tokens)
        assert after.shape[-1] == VOCABULARY + 4
    assert torch.equal(before.argmax(-1), after[..., :VOCABULARY].argmax(-1))
    model(tokens, labels=tokens).loss.backward()
    assert model.lm_head.weight.grad is not None


def test_a_cache_of_inference_mode_serves_elsewhere(model: Any) -> None:
    tokens = random_tokens(1, 12, seed=85)
    cache = model.new_cache()
    with torch.inference_mode():
        model(tokens[:, :4], past_key_values=cache)
    with torch.no_grad():
        pieces = [model(tokens[:, t : t + 1], past_key_values=cache).logits for t in range(4, 12)]
        whole = model(tokens).logits[:, 4:]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)


@pytest.mark.parametrize("kind", ["none", "layer"])
def test_a_cache_keeps_no_graph(model: Any, kind: str) -> None:
    """In evaluation mode with gradients on, as where a user forgot to switch them off."""
    model.set_activation_checkpointing(kind)
    tokens = random_tokens(1, 6, seed=86)
    cache = model.new_cache()
    pieces = [model(tokens[:, t : t + 1], past_key_values=cache).logits for t in range(6)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens).logits)
    assert all(s.store is None or not s.store.requires_grad for s in [cache.settled, *cache.moving])


def test_a_last_pass_without_tokens_still_gives_its_gates(model: Any) -> None:
    tokens = random_tokens(2, 5, seed=87)
    with torch.no_grad():
        out = model(tokens, labels=tokens, ponder_fraction=0.5, imposed_depths=torch.ones_like(tokens))
    assert (out.gates > 0).all()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda model, inputs: setattr(model.config, "kv_reuse", False), "halting is skip: it needs kv_reuse"),
        (lambda model, inputs: inputs.update(imposed_depths=torch.ones(1, 5)), r"imposed_depths is of shape \(1, 5\)"),
        (
            lambda model, inputs: inputs.update(input_ids=torch.ones(2, 0, dtype=torch.long)),
            "there is no token to read",
        ),
    ],
)
def test_mistakes_are_told(model: Any, change: Any, told: str) -> None:
    inputs = {"input_ids": random_tokens(2, 5, seed=88)}
    change(model, inputs)
    with pytest.raises(ValueError, match=told):
        model(**inputs)


def test_a_cache_of_other_rows_is_refused_and_stays_whole(model: Any) -> None:
    tokens = random_tokens(2, 5, seed=89)
    cache = model.new_cache()
    with torch.no_grad():
        model(tokens[:1, :3], past_key_values=cache)
        with pytest.raises(ValueError, match="holds 1 rows, input_ids has 2"):
            model(tokens, past_key_values=cache)
        more = model(tokens[:1, 3:], past_key_values=cache).logits
        torch.testing.assert_close(more, model(tokens[:1]).logits[:, 3:])


def test_depths_of_writing_are_refused_where_they_cannot_be_noted(model: Any) -> None:
    tokens = random_tokens(1, 4, seed=90)
    with pytest.raises(ValueError, match="return_depths and logits_to_keep"):
        model.generate(tokens, max_new_tokens=2, return_depths=True, logits_to_keep=0)
    with pytest.raises(ValueError, match="its own assistant"):
        model.generate(tokens, max_new_tokens=2, return_depths=True, assistant_model=model)
