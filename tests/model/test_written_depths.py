"""`generate(return_depths=True)`: a new token's depth is that of the token before it in a forward over the text."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from pipeline.model.aligned_cache import FullPassCache
from tests.model.test_generation import left_padded, restless_writer, write, writer
from tests.model.tiny_adaponder import random_tokens

NEW = 12
BOTH = pytest.mark.parametrize("halting", ["masked", "skip"])


def read_again(model: Any, text: torch.Tensor, mask: torch.Tensor, start: int, **arguments: Any) -> torch.Tensor:
    """Depths of the tokens from which those at `start` and later were predicted."""
    mask = mask.repeat_interleave(len(text) // len(mask), dim=0)
    mask = torch.cat([mask, mask.new_ones(len(text), text.shape[1] - start)], dim=1)
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        return model(text, attention_mask=mask, position_ids=places, **arguments).depths[:, start - 1 : -1]


WAYS = {
    "greedy": {},
    "sampling": {"do_sample": True},
    "several samples": {"do_sample": True, "num_return_sequences": 3},
    "beams": {"num_beams": 4},
    "several beams": {"num_beams": 4, "num_return_sequences": 2, "length_penalty": -1.0},
    "sampled beams": {"num_beams": 3, "do_sample": True},
    "no cache": {"use_cache": False},
    "beams, no cache": {"num_beams": 3, "use_cache": False},
    "chunks": {"prefill_chunk_size": 3},
}


@BOTH
@pytest.mark.parametrize("way", WAYS)
def test_they_are_those_of_a_forward(halting: str, way: str) -> None:
    model = writer(halting)
    batch, mask = left_padded([3, 7, 5], seed=100)
    torch.manual_seed(8)
    text, depths = write(model, batch, NEW, attention_mask=mask, return_depths=True, **WAYS[way])
    torch.manual_seed(8)
    assert torch.equal(text, write(model, batch, NEW, attention_mask=mask, **WAYS[way])), "the text stays the same"
    assert depths.dtype == torch.int64
    assert torch.equal(depths, read_again(model, text, mask, 7))
    assert len(depths.unique()) > 1


@BOTH
@pytest.mark.parametrize("way", ["greedy", "several samples", "several beams", "no cache"])
def test_they_are_0_after_the_end(halting: str, way: str) -> None:
    model = writer(halting)
    batch, mask = left_padded([3, 7, 5], seed=100)
    ends = [4, 5, 6, 7, 8, 9, 10]
    torch.manual_seed(8)
    text, depths = write(
        model, batch, NEW, attention_mask=mask, return_depths=True, eos_token_id=ends, pad_token_id=4, **WAYS[way]
    )
    expected = read_again(model, text, mask, 7)
    for row, new in enumerate(text[:, 7:].tolist()):
        length = next((place + 1 for place, token in enumerate(new) if token in ends), len(new))
        assert depths[row].tolist() == expected[row, :length].tolist() + [0] * (len(new) - length)
    assert (depths == 0).any()


@BOTH
@pytest.mark.parametrize("way", ["prompt lookup", "assistant"])
def test_they_tell_of_drafted_tokens_too(halting: str, way: str) -> None:
    model, prompt = restless_writer(halting), random_tokens(1, 5, seed=101).repeat(1, 2)
    assistant = copy.deepcopy(model)
    assistant.config.halt_threshold = 0.45
    arguments: dict[str, Any] = {"prompt_lookup_num_tokens": 3} if way == "prompt lookup" else {}
    if way == "assistant":
        arguments = {"assistant_model": assistant}
    text, depths = write(model, prompt, 20, return_depths=True, **arguments)
    assert len(depths.unique()) > 2
    assert torch.equal(depths, read_again(model, text, torch.ones_like(prompt), 10))
    end = int(text[0, 22])
    ended, depths = write(model, prompt, 20, return_depths=True, eos_token_id=end, **arguments)
    assert depths.shape[1] == ended.shape[1] - 10
    assert torch.equal(depths, read_again(model, ended, torch.ones_like(prompt), 10))


@BOTH
@pytest.mark.parametrize("way", ["greedy", "several samples", "beams", "no cache", "chunks"])
def test_imposed_depths_are_followed(halting: str, way: str) -> None:
    model = writer(halting)
    batch, mask = left_padded([3, 7, 5], seed=102)
    imposed = torch.randint(1, 5, (3, 7 + NEW), generator=torch.Generator().manual_seed(2))
    arguments = {"attention_mask": mask, "imposed_depths": imposed, **WAYS[way]}
    text, depths = write(model, batch, NEW, return_depths=True, **arguments)
    rows = imposed.repeat_interleave(len(text) // 3, dim=0)
    assert torch.equal(depths, rows[:, 6:-1])
    assert torch.equal(depths, read_again(model, text, mask, 7, imposed_depths=rows))


@pytest.mark.parametrize("depth", [1, 4])
def test_an_imposed_depth_writes_what_it_would_alone(depth: int) -> None:
    """At depth 1 the first pass alone writes; at K no token halts."""
    model, prompt = writer("skip"), random_tokens(2, 5, seed=103)
    imposed = torch.full((2, 5 + NEW), depth)
    found = write(model, prompt, NEW, imposed_depths=imposed)
    model.config.halting = "none" if depth == 4 else "masked"
    model.config.halt_threshold = 0.4 if depth == 4 else 0.999
    assert torch.equal(found, write(model, prompt, NEW, use_cache=False))


def test_a_generation_config_is_followed_and_a_dictionary_given_where_asked_for() -> None:
    model, prompt = writer("masked"), random_tokens(2, 5, seed=104)
    mask = torch.ones_like(prompt)
    free, depths = write(model, prompt, NEW, return_depths=True)
    end = int(free[0, 9])
    length = free[0, 5:].tolist().index(end) + 1
    config = GenerationConfig(max_new_tokens=NEW, do_sample=False, pad_token_id=0, eos_token_id=end)
    expected = write(model, prompt, NEW, eos_token_id=end)
    for arguments in ((prompt, config), (prompt,)):
        named = {} if len(arguments) == 2 else {"generation_config": config}
        text, found = model.generate(*arguments, attention_mask=mask, return_depths=True, **named)
        assert torch.equal(text, expected)
        assert found[0].tolist() == depths[0, :length].tolist() + [0] * (found.shape[1] - length)
    asked = copy.deepcopy(config)
    asked.return_dict_in_generate = True
    for answer in (
        model.generate(input_ids=prompt, generation_config=asked, attention_mask=mask, return_depths=True),
        model.generate(prompt, config, attention_mask=mask, return_depths=True, return_dict_in_generate=True),
    ):
        assert torch.equal(answer.sequences, text)
        assert torch.equal(answer.depths, found)
        assert isinstance(answer.past_key_values, FullPassCache)
    pair = model.generate(prompt, asked, attention_mask=mask, return_depths=True, return_dict_in_generate=False)
    assert torch.equal(pair[1], found)


def test_without_a_prompt_the_first_token_is_given() -> None:
    model = writer("skip")
    text, depths = model.generate(max_new_tokens=NEW, do_sample=False, pad_token_id=0, return_depths=True)
    assert text[0, 0] == model.config.bos_token_id
    length = int((depths > 0).sum())
    again = read_again(model, text, torch.ones(1, 1, dtype=torch.long), 1)
    assert torch.equal(depths[:, :length], again[:, :length])


def test_threads_that_write_with_one_network_get_their_own() -> None:
    model = writer("skip")
    prompts = [random_tokens(1, n, seed=105 + n) for n in (3, 4, 5, 6)]
    expected = [write(model, prompt, NEW, return_depths=True) for prompt in prompts]
    found: dict[int, Any] = {}

    def run(number: int) -> None:
        found[number] = write(model, prompts[number], NEW, return_depths=True)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, (text, depths) in enumerate(expected):
        assert torch.equal(found[number][0], text)
        assert torch.equal(found[number][1], depths)
