"""Fast ids are the `tokenizers` library's ids on any text, or the tokenizer is refused with the reason."""

from __future__ import annotations

import json
import random
import sys
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import tokenization.encoding.fast_encoding
from tests.tokenization.generated_records import END, generated_texts
from tokenization.encoding.fast_encoding import FastEncoder, byte_characters, fast_encoder
from tokenization.encoding.tokenizer import train_tokenizer
from tokenization.encoding.word_pattern import WordPattern, is_composed

UINT16 = np.dtype(np.uint16)
MARKUP = "<mark up>"
FRAGMENTS = [
    *(" " * count for count in (1, 1, 2, 3, 7, 23, 24, 25, 26, 48, 49)),
    *("\n", "\r\n", "\t", "\n\n", "\t\t", "\x0b", "\x1c", "\x85", "\xa0", "\u3000", "\u2028", "\ufeff", "\0"),
    *("a", "the", "Hello", "'s", "'ll", "'d", "'", "1", "23", "½", "²", ".", "...", "--", "_", "é", "ß", "東京", "א"),
    *(
        "e\u0301",
        "\u0301",
        "\u0323\u0301",
        "\u0345",
        "\u1100\u1161\u11a8",
        "\u1161",
        "\uac00\u11a8",
        "\u2126",
        "\u0958",
    ),
    *(
        "🙂",
        "❤\ufe0f",
        "\U0001d400",
        "\U00010400",
        "\U0001d7d8",
        "\U000104a0",
        "\U000e0041",
        "\U0001d15e",
        "\U0010fffd",
    ),
    *("\u0378", "\U0001fafe", "\U000323b0", "\uffff", "\ufdd0", "\ue000", "\u16ee", "\u2160", "\u0488", "\u200d"),
    *(END, "<|padding|>", "<|end", "oftext|>", MARKUP, "<mark", "up>"),
]
TEXTS = st.text() | st.lists(st.sampled_from(FRAGMENTS) | st.characters(exclude_categories=["Cs"])).map("".join)


def neox_like(longest_run: int = 24, **added: Any) -> Tokenizer:
    """NFC, runs of spaces as added tokens with ids behind the merges, the longest first; `added` as one more token."""
    chance = random.Random(1)
    texts = [
        *generated_texts(100),
        *(text.replace(" ", chance.choice(["  ", "\n", " 1"])) for text in generated_texts(40)),
    ]
    tokenizer = train_tokenizer(texts, 600, END)[0]
    tokenizer.add_tokens([AddedToken(" " * length, normalized=True) for length in range(longest_run, 1, -1)])
    if added:
        tokenizer.add_tokens([AddedToken(**added)])
    tokenizer.encode_special_tokens = True
    return tokenizer


def encoder_of(tokenizer: Tokenizer) -> FastEncoder:
    encoder = fast_encoder(tokenizer, UINT16)
    assert isinstance(encoder, FastEncoder), encoder
    return encoder


def ids_of(encoder: FastEncoder, text: str) -> list[int] | None:
    ids = encoder.encode(text)
    return None if ids is None else np.frombuffer(ids, UINT16).tolist()


def expected(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


@cache
def neox() -> tuple[Tokenizer, FastEncoder]:
    tokenizer = neox_like()
    return tokenizer, encoder_of(tokenizer)


@cache
def plain() -> tuple[Tokenizer, FastEncoder]:
    """Without a normaliser and without added tokens that are not special."""
    tokenizer = neox_like(longest_run=1)
    tokenizer.normalizer = None  # type: ignore[assignment]
    return tokenizer, encoder_of(tokenizer)


@cache
def marked() -> tuple[Tokenizer, FastEncoder]:
    """With an added token that swallows the spaces behind it."""
    tokenizer = neox_like(longest_run=3, content=MARKUP, rstrip=True, normalized=False)
    return tokenizer, encoder_of(tokenizer)


@settings(max_examples=250, deadline=None)
@given(text=TEXTS)
def test_ids_are_the_librarys_on_any_text(text: str) -> None:
    assert ids_of(neox()[1], text) == expected(neox()[0], text)
    assert ids_of(plain()[1], text) == expected(plain()[0], text)


@settings(max_examples=250, deadline=None)
@given(text=TEXTS)
def test_a_text_with_another_added_token_is_left_to_the_library(text: str) -> None:
    ids = ids_of(marked()[1], text)
    assert (ids is None) == (MARKUP in text)
    if ids is not None:
        assert ids == expected(marked()[0], text)


@pytest.mark.slow
def test_ids_are_the_librarys_beside_every_character() -> None:
    for plane in range(0, 0x110000, 0x2000):
        characters = [chr(number) for number in range(plane, plane + 0x2000) if not 0xD800 <= number < 0xE000]
        text = "".join(f"a{character}1{character} {character}\n " for character in characters)
        assert ids_of(neox()[1], text) == expected(neox()[0], text), hex(plane)


def test_what_counts_as_composed_is_left_alone_by_the_normaliser() -> None:
    composed = [chr(number) for number in range(sys.maxunicode + 1) if is_composed(chr(number))]
    assert len(composed) > 50_000
    chance = random.Random(0)
    for _ in range(3):
        text = "".join(composed)
        assert is_composed(text)
        assert normalizers.NFC().normalize_str(text) == text
        chance.shuffle(composed)
    for text in ("e\u0301", "\u1100\u1161", "\uac00\u11a8", "\u2126", "\u09c7\u09be", "a\u0323"):
        assert not is_composed(text)
    assert all(is_composed(text) for text in ("naïve \u2013 “東京”", "❤\ufe0f 🙂", "\ufeffx\u00ad\r\n", "\U0001d400"))


@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
def test_texts_called_composed_are(text: str) -> None:
    if is_composed(text):
        assert unicodedata.normalize("NFC", text) == normalizers.NFC().normalize_str(text) == text


@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
def test_words_are_those_of_the_byte_level_pre_tokenizer(text: str) -> None:
    words = WordPattern().words(text)
    assert "".join(words) == text
    library = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    assert [text[start:end] for _, (start, end) in library] == words


def test_byte_characters_are_the_librarys() -> None:
    characters = byte_characters()
    assert set(characters) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(characters.values()) == list(range(256))
    text = "".join(map(chr, range(256))) + "\u0800\uffff\U0010ffff"
    ((spelt, _),) = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    assert bytes(map(characters.__getitem__, spelt)) == text.encode()


@pytest.mark.parametrize(
    "text",
    [
        "a" * 300_000,
        "".join(random.Random(2).choices("etaoinshrdlu", k=300_000)),
        " " * 100_001,
        "\n" * 300_000 + "a",
        "\n \t" * 60_000 + "a",
        "\r\n" * 100_000,
        "!" * 300_000,
        "東" * 100_000,
        "🙂" * 50_000,
        "a🙂1" * 50_000,
        "a\U00010400" * 100_000,
        "e" + "\u0301" * 20_000,
    ],
    ids=lambda text: repr(text[:4]),
)
def test_long_words_are_exact_and_take_time_in_proportion(text: str) -> None:
    assert ids_of(neox()[1], text) == expected(neox()[0], text)


def test_forgetting_words_changes_no_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenization.encoding.fast_encoding, "KEPT_WORDS", 30)
    encoder = encoder_of(neox()[0])
    for text in ["one   two  three", *generated_texts(50, seed=3), "one   two  three"]:
        assert ids_of(encoder, text) == expected(neox()[0], text)
    assert len(encoder._ids_of_word.__self__) <= 30


def test_half_a_surrogate_pair_is_no_text() -> None:
    for text in ("\ud800", "a\udc00b", "e\u0301\ud83d"):
        with pytest.raises(UnicodeEncodeError):
            neox()[1].encode(text)
        with pytest.raises(UnicodeEncodeError):
            plain()[1].encode(text)


def changed(change: Callable[[dict[str, Any]], object]) -> Tokenizer:
    content = json.loads(neox()[0].to_str())
    change(content)
    return Tokenizer.from_str(json.dumps(content))


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(generated_texts(5), trainers.WordPieceTrainer(vocab_size=100, show_progress=False))
    return tokenizer


def without_byte(content: dict[str, Any]) -> None:
    del content["model"]["vocab"]["Ċ"]


def with_second_way(content: dict[str, Any]) -> None:
    content["model"]["vocab"] |= {"QZ": 9000, "QZQ": 9001, "ZQ": 9002}
    content["model"]["merges"] += [["Q", "Z"], ["Z", "Q"], ["QZ", "Q"], ["Q", "ZQ"]]


def with_unreachable_token(content: dict[str, Any]) -> None:
    content["model"]["vocab"] |= {"QZ": 9000, "ZX": 9001, "QZX": 9002}
    content["model"]["merges"] += [["Q", "Z"], ["Z", "X"], ["Q", "ZX"]]


def with_reversed_merges(content: dict[str, Any]) -> None:
    content["model"]["vocab"] |= {"QZ": 9000, "QZQ": 9001}
    content["model"]["merges"] += [["QZ", "Q"], ["Q", "Z"]]


def without_a_run(content: dict[str, Any]) -> None:
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != " " * 5]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (word_piece, "its model is WordPiece, not BPE"),
        (lambda: changed(lambda c: c["pre_tokenizer"].update(add_prefix_space=True)), "add_prefix_space"),
        (lambda: changed(lambda c: c["pre_tokenizer"].update(use_regex=False)), "does not cut text into words"),
        (lambda: changed(lambda c: c.update(pre_tokenizer={"type": "Whitespace"})), "is Whitespace, not ByteLevel"),
        (lambda: changed(lambda c: c.update(pre_tokenizer=None)), "is None, not ByteLevel"),
        (lambda: changed(lambda c: c.update(normalizer={"type": "NFKC"})), "its normalizer is NFKC, not NFC"),
        (lambda: changed(lambda c: c["model"].update(dropout=0.1)), "sets dropout"),
        (lambda: changed(lambda c: c["model"].update(ignore_merges=True)), "sets ignore_merges"),
        (lambda: changed(without_byte), "lacks the byte 0x0a"),
        (lambda: changed(with_second_way), "two of its merges make the token 'QZQ'"),
        (lambda: changed(with_unreachable_token), "do not make the token 'QZX'"),
        (lambda: changed(with_reversed_merges), "merges 'QZ' and 'Q' before it makes them"),
        (lambda: changed(without_a_run), "not one of each length from 2 on"),
    ],
)
def test_other_tokenizers_are_refused_with_the_reason(make: Callable[[], Tokenizer], told: str) -> None:
    reason = fast_encoder(make(), UINT16)
    assert isinstance(reason, str)
    assert told in reason
    assert "\n" not in reason


def test_limits_on_length_are_refused() -> None:
    tokenizer = changed(lambda content: None)
    tokenizer.enable_truncation(4)
    assert fast_encoder(tokenizer, UINT16) == "it sets truncation"


def test_special_tokens_that_touch_runs_of_spaces_are_left_to_the_library() -> None:
    tokenizer = neox_like()
    tokenizer.add_special_tokens([AddedToken("<a  b>", special=True), AddedToken("<c d>", special=True)])
    encoder = encoder_of(tokenizer)
    assert ids_of(encoder, "x <a  b> y") is None
    for text in ("x <c d> y", "<c d>   <c d>", "<a  <b>"):
        assert ids_of(encoder, text) == expected(tokenizer, text)


def test_a_saved_tokenizer_gives_the_same_encoder(tmp_path: Path) -> None:
    neox()[0].save(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in generated_texts(10, seed=9):
        assert encoder_of(loaded).encode(text) == neox()[1].encode(text)
