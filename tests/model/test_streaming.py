"""Text comes out while it is written: transformers' streamer in a thread."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, TextIteratorStreamer

from tests.model.test_generation import write, writer
from tests.model.tiny_adaponder import VOCABULARY


@pytest.fixture
def tokenizer() -> Any:
    """A word for every entry of the tiny vocabulary."""
    words = {"<end>": 0, **{f"w{number}": number for number in range(1, VOCABULARY)}}
    plain = Tokenizer(models.WordLevel(words, unk_token="<end>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore - the setter exists
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<end>", pad_token="<end>")


@pytest.mark.parametrize("halting", ["masked", "skip"])
@pytest.mark.parametrize("assisted", [False, True])
def test_the_stream_is_the_text(tokenizer: Any, halting: str, assisted: bool) -> None:
    model = writer(halting)
    inputs = tokenizer("w3 w5 w7 w3 w5", return_tensors="pt")
    prompt = inputs["input_ids"]
    assert prompt.tolist() == [[3, 5, 7, 3, 5]]
    arguments: dict[str, Any] = {"new": 12, "return_depths": True}
    if assisted:
        arguments["prompt_lookup_num_tokens"] = 2
    text, depths = write(model, prompt, **arguments)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    kept: list[Any] = []
    thread = threading.Thread(target=lambda: kept.append(write(model, prompt, streamer=streamer, **arguments)))
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert "".join(pieces) == tokenizer.decode(text[0, 5:])
    assert len([piece for piece in pieces if piece]) > 1, "it comes piece by piece"
    assert torch.equal(kept[0][0], text)
    assert torch.equal(kept[0][1], depths)
