"""`generate()`: what it writes with the cache is what the forward says of the whole text, token by token."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, GenerationConfig, GPTNeoXConfig, GPTNeoXForCausalLM

from pipeline.model.adaponder_cache import AdaPonderCache
from pipeline.model.aligned_cache import FullPassCache
from tests.model.tiny_adaponder import VOCABULARY, halting_config, random_model, random_tokens

LONG = 256
BOTH = pytest.mark.parametrize("halting", ["masked", "skip"])

MEMBERS = [
    {"feedback": "hidden_state", "gating": "open"},
    {"pause_tokens": 3, "max_passes": 1},
    {"shared_gate": True, "max_passes": 3},
]
"""The Loop Transformer, pause tokens and a shared gate (method section 8)."""


def writer(halting: str, seed: int = 31, **fields: Any) -> Any:
    """A network in float64: texts are compared token by token, so no two logits may be equal but for rounding."""
    return random_model(halting_config(halting=halting, max_position_embeddings=LONG, **fields), seed=seed)


def restless_writer(halting: str, **fields: Any) -> Any:
    """One whose attention is sharp: its texts do not fall into repeating a word, its depths not into one."""
    model = writer(halting, seed=35, **fields)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("embed_in.weight", "query_key_value.weight", "dense.weight", "4h_to_h.weight")):
                weight *= 4
    return model


def write(model: Any, prompt: torch.Tensor, new: int = 8, **arguments: Any) -> Any:
    given = {"attention_mask": torch.ones_like(prompt), "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    return model.generate(prompt, max_new_tokens=new, **{**given, **arguments})


def left_padded(lengths: list[int], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts of these lengths as one batch, and its attention mask."""
    batch, mask = torch.zeros(2, len(lengths), max(lengths), dtype=torch.long)
    for row, length in enumerate(lengths):
        batch[row, -length:] = random_tokens(length, seed=seed + row)
        mask[row, -length:] = 1
    return batch, mask


@BOTH
@pytest.mark.parametrize("use_cache", [None, True, False])
def test_greedy_is_the_argmax_of_the_forward(halting: str, use_cache: bool | None) -> None:
    model, tokens = writer(halting), random_tokens(2, 5, seed=31)
    expected = tokens
    with torch.no_grad():
        for _ in range(8):
            expected = torch.cat([expected, model(expected).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(write(model, tokens, use_cache=use_cache), expected)


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [[5], [2, 9, 6]])
def test_two_hundred_greedy_tokens_are_the_same_without_a_cache(lengths: list[int]) -> None:
    model = restless_writer("masked")
    batch, mask = left_padded(lengths, seed=50)
    expected, depths = write(model, batch, new=200, attention_mask=mask, use_cache=False, return_depths=True)
    assert len(expected[:, -100:].unique()) > 8
    assert (depths.flatten().bincount(minlength=5)[1:] > 5).all()
    for halting, kind in (("masked", FullPassCache), ("skip", AdaPonderCache)):
        model.config.halting = halting
        cached = write(model, batch, new=200, attention_mask=mask, return_dict_in_generate=True, return_depths=True)
        assert torch.equal(cached.sequences, expected)
        assert torch.equal(cached.depths, depths)
        assert isinstance(cached.past_key_values, kind)
        # The last token is written and not read.
        assert cached.past_key_values.get_seq_length() == expected.shape[1] - 1


@st.composite
def requests(draw: Any) -> tuple[Any, torch.Tensor, dict[str, Any]]:
    """A random network, a left-padded batch, and a way of decoding."""
    seed = draw(st.integers(0, 2**31))
    fields = {"max_passes": draw(st.integers(1, 4)), "use_parallel_residual": draw(st.booleans())}
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    way = draw(
        st.sampled_from(
            [
                {},
                {"do_sample": True, "temperature": 0.7},
                {"do_sample": True, "num_return_sequences": 3},
                {"num_beams": 4, "num_return_sequences": 2},
                {"num_beams": 3, "do_sample": True, "length_penalty": 0.5},
            ]
        )
    )
    eos = draw(st.sampled_from([None, [3, 4, 5]]))
    fields |= draw(st.sampled_from([{}, *MEMBERS]))
    batch, mask = left_padded(lengths, seed)
    return writer("skip", seed, **fields), batch, {"attention_mask": mask, "eos_token_id": eos, **way}


@settings(max_examples=8, deadline=None)
@given(request=requests())
def test_every_way_of_decoding_writes_what_the_plain_path_writes_without_a_cache(request) -> None:
    model, batch, way = request
    texts = []
    for halting, use_cache in (("skip", True), ("masked", True), ("masked", False)):
        model.config.halting = halting
        torch.manual_seed(7)
        texts.append(write(model, batch, use_cache=use_cache, **way))
    assert torch.equal(texts[0], texts[2])
    assert torch.equal(texts[1], texts[2])


def test_sampling_draws_from_the_forward() -> None:
    model, tokens = writer("skip"), random_tokens(2, 5, seed=32)
    torch.manual_seed(5)
    expected = tokens
    with torch.no_grad():
        for _ in range(8):
            probabilities = (model(expected).logits[:, -1].float() / 0.7).softmax(-1)
            expected = torch.cat([expected, torch.multinomial(probabilities, 1)], dim=1)
    torch.manual_seed(5)
    assert torch.equal(write(model, tokens, do_sample=True, temperature=0.7, top_k=0), expected)


@BOTH
def test_a_left_padded_batch_writes_what_its_rows_write_alone(halting: str) -> None:
    model = writer(halting)
    batch, mask = left_padded([2, 5, 7], seed=40)
    together = write(model, batch, attention_mask=mask)
    for row, length in enumerate([2, 5, 7]):
        assert torch.equal(together[row, 7:], write(model, batch[row : row + 1, -length:])[0, length:])


@BOTH
def test_beams_are_at_least_as_probable_as_the_greedy_text(halting: str) -> None:
    model, prompt = writer(halting), random_tokens(1, 5, seed=33)

    @torch.no_grad()
    def log_probability(text: torch.Tensor) -> float:
        steps = model(text).logits[:, 4:-1].log_softmax(-1)
        return steps.gather(-1, text[:, 5:].unsqueeze(-1)).sum().item()

    beams = write(model, prompt, num_beams=4, num_return_sequences=2)
    assert beams.shape == (2, 13)
    assert log_probability(beams[:1]) >= log_probability(write(model, prompt)) - 1e-6
    assert log_probability(beams[:1]) >= log_probability(beams[1:])


@BOTH
def test_rows_end_at_their_own_time(halting: str) -> None:
    model = writer(halting)
    batch, mask = left_padded([3, 5, 4, 2], seed=60)
    free = write(model, batch, new=16, attention_mask=mask)[:, 5:]
    end = int(free[0, 4])
    stopped = write(model, batch, new=16, attention_mask=mask, eos_token_id=end, pad_token_id=0)[:, 5:]
    lengths = set()
    for row, text in enumerate(stopped):
        found = (free[row] == end).nonzero()
        length = int(found[0]) + 1 if len(found) else stopped.shape[1]
        lengths.add(length)
        assert torch.equal(text[:length], free[row, :length])
        assert not text[length:].any()
    assert len(lengths) > 1


@BOTH
@pytest.mark.parametrize("whole", [True, False])
def test_a_returned_cache_is_written_on_from(halting: str, whole: bool) -> None:
    """With the text so far, or with its new part alone; the mask tells which."""
    model = writer(halting)
    batch, mask = left_padded([4, 2], seed=70)
    first = write(model, batch, new=5, attention_mask=mask, return_dict_in_generate=True)
    more = random_tokens(2, 3, seed=72)
    text = torch.cat([first.sequences, more], dim=1)
    mask = torch.cat([mask, torch.ones(2, 8, dtype=torch.long)], dim=1)
    expected, expected_depths = write(model, text, attention_mask=mask, use_cache=False, return_depths=True)
    # The last token that was written has not been read.
    given = text if whole else text[:, first.past_key_values.get_seq_length() :]
    cache = first.past_key_values
    went_on, depths = write(model, given, attention_mask=mask, past_key_values=cache, return_depths=True)
    assert torch.equal(went_on[:, -8:], expected[:, -8:])
    assert torch.equal(depths, expected_depths)
    assert cache.get_seq_length() == expected.shape[1] - 1


@BOTH
@pytest.mark.parametrize("chunk", [1, 4, 20])
def test_a_prompt_may_be_read_in_chunks(halting: str, chunk: int) -> None:
    model = writer(halting)
    batch, mask = left_padded([9, 4], seed=80)
    imposed = torch.randint(1, 5, (2, 17), generator=torch.Generator().manual_seed(1))
    ways: list[dict[str, Any]] = [{}, {"imposed_depths": imposed}]
    for way in ways:
        expected = write(model, batch, attention_mask=mask, **way)
        assert torch.equal(write(model, batch, attention_mask=mask, prefill_chunk_size=chunk, **way), expected)


@BOTH
def test_prompt_lookup_writes_the_greedy_text(halting: str) -> None:
    model = restless_writer(halting)
    prompt = random_tokens(1, 5, seed=90).repeat(1, 3)
    expected = write(model, prompt, new=24)
    found = write(model, prompt, new=24, prompt_lookup_num_tokens=4, return_dict_in_generate=True)
    assert torch.equal(found.sequences, expected)
    assert found.past_key_values.get_seq_length() == expected.shape[1] - 1


def stock_assistant() -> Any:
    torch.manual_seed(3)
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=LONG,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPTNeoXForCausalLM(config).eval()


@BOTH
@pytest.mark.parametrize("assistant", ["stock", "itself", "a shallower one"])
def test_assisted_decoding_writes_the_greedy_text(halting: str, assistant: str) -> None:
    model, prompt = restless_writer(halting), random_tokens(1, 5, seed=91)
    drafter = stock_assistant() if assistant == "stock" else copy.deepcopy(model)
    if assistant == "a shallower one":
        drafter.config.halt_threshold = 0.6
    expected = write(model, prompt, new=24)
    assert torch.equal(write(model, prompt, new=24, assistant_model=drafter), expected)


@BOTH
@pytest.mark.parametrize("kind", ["static", "dynamic", "quantized", "paged"])
def test_another_implementation_of_the_cache_is_refused_in_a_line(halting: str, kind: str) -> None:
    with pytest.raises(ValueError, match=f"cache_implementation is '{kind}': leave it out") as refused:
        write(writer(halting), random_tokens(1, 3, seed=1), cache_implementation=kind)
    assert "\n" not in str(refused.value)
    if kind == "static":
        with pytest.raises(ValueError, match="leave it out"):
            writer(halting).generate(
                random_tokens(1, 3, seed=1), GenerationConfig(cache_implementation=kind, max_new_tokens=2)
            )


@BOTH
def test_a_cache_of_another_kind_is_refused_in_a_line(halting: str) -> None:
    model = writer(halting)
    other = FullPassCache(2) if halting == "skip" else AdaPonderCache(4)
    for wrong in (DynamicCache(), other):
        with pytest.raises(ValueError, match=f"a {type(wrong).__name__}: halting {halting} needs new_cache") as refused:
            write(model, random_tokens(1, 3, seed=1), past_key_values=wrong)
        assert "\n" not in str(refused.value)


def test_a_generation_config_is_followed() -> None:
    model, prompt = writer("skip"), random_tokens(2, 4, seed=92)
    config = GenerationConfig(max_new_tokens=6, do_sample=False, pad_token_id=0, use_cache=False)
    mask = torch.ones_like(prompt)
    model.generation_config.eos_token_id = None
    assert torch.equal(model.generate(prompt, config, attention_mask=mask), write(model, prompt, new=6))
