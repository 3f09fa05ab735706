"""`generate()` by full recomputation: what it writes is what the forward says, token by token."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.model.tiny_adaponder import halting_config, random_model, random_tokens

NEW = 6


def written(model: Any, prompt: torch.Tensor, **arguments) -> torch.Tensor:
    arguments = {"attention_mask": torch.ones_like(prompt), "do_sample": False, "pad_token_id": 0, **arguments}
    return model.generate(prompt, max_new_tokens=NEW, eos_token_id=None, **arguments)


@pytest.fixture
def model() -> Any:
    return random_model(halting_config(), seed=31, dtype=torch.float32)


@pytest.mark.parametrize("use_cache", [None, True, False])
def test_greedy_is_the_argmax_of_the_forward(model: Any, use_cache: bool | None) -> None:
    tokens = random_tokens(2, 5, seed=31)
    expected = tokens
    for _ in range(NEW):
        expected = torch.cat([expected, model(expected).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(written(model, tokens, use_cache=use_cache), expected)


def test_sampling_draws_from_the_forward(model: Any) -> None:
    tokens = random_tokens(2, 5, seed=32)
    torch.manual_seed(5)
    expected = tokens
    with torch.no_grad():
        for _ in range(NEW):
            probabilities = (model(expected).logits[:, -1] / 0.7).softmax(-1)
            expected = torch.cat([expected, torch.multinomial(probabilities, 1)], dim=1)
    torch.manual_seed(5)
    assert torch.equal(written(model, tokens, do_sample=True, temperature=0.7, top_k=0), expected)


def test_a_left_padded_batch_writes_what_its_rows_write_alone(model: Any) -> None:
    prompts = [random_tokens(1, n, seed=40 + n) for n in (2, 5, 7)]
    mask = torch.zeros(3, 7, dtype=torch.long)
    batch = torch.zeros(3, 7, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        mask[row, -prompt.shape[1] :] = 1
        batch[row, -prompt.shape[1] :] = prompt
    together = written(model, batch, attention_mask=mask)
    for row, prompt in enumerate(prompts):
        assert torch.equal(together[row, 7:], written(model, prompt)[0, prompt.shape[1] :])


def test_beams(model: Any) -> None:
    """The best of several beams is at least as probable as the greedy text."""

    def log_probability(text: torch.Tensor) -> float:
        steps = model(text).logits[:, 4:-1].log_softmax(-1)
        return steps.gather(-1, text[:, 5:].unsqueeze(-1)).sum().item()

    prompt = random_tokens(1, 5, seed=33)
    beams = written(model, prompt, num_beams=4)
    assert beams.shape == (1, 5 + NEW)
    assert log_probability(beams) >= log_probability(written(model, prompt)) - 1e-6
