"""A data set's tokenizer, given or trained, loads with AutoTokenizer and gives texts back."""

from __future__ import annotations

import json
import pickle
import shutil
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import tokenization.encoding.tokenizer
from pipeline.errors import UserError
from tests.tokenization.generated_records import END, generated_texts
from tokenization.encoding.tokenizer import DocumentTokenizer, load_tokenizer, save_tokenizer, train_tokenizer

PARTS = ["ab", "Z9", " ", "  ", "\n", "\u0301", "'s", ".", "é", "東", "。", "\u0660", END]


class CutText:
    """A text in pieces that end anywhere."""

    def __init__(self, text: str, cuts: Sequence[int]) -> None:
        self._text = text
        self._cuts = sorted(min(cut, len(text)) for cut in cuts)

    def pieces(self) -> Iterator[str]:
        for start, end in zip([0, *self._cuts], [*self._cuts, len(self._text)], strict=True):
            yield self._text[start:end]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, small_tokenizer: Path) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    save_tokenizer(*load_tokenizer(str(small_tokenizer), END), folder)
    return folder


@pytest.fixture(scope="module")
def of_saved(saved: Path) -> DocumentTokenizer:
    return DocumentTokenizer(saved, "given", END)


@pytest.fixture(scope="module")
def of_library(saved: Path) -> DocumentTokenizer:
    """As after a difference was found."""
    tokenizer = DocumentTokenizer(saved, "given", END)
    tokenizer._fast = None
    return tokenizer


def test_a_trained_tokenizer_has_neox_settings_and_as_many_entries_as_asked() -> None:
    tokenizer, roles = train_tokenizer(generated_texts(100), 400, END)
    assert tokenizer.get_vocab_size(with_added_tokens=True) == 400
    assert (tokenizer.token_to_id(END), tokenizer.token_to_id("<|padding|>")) == (0, 1)
    assert roles == {"bos_token": END, "eos_token": END, "unk_token": END, "pad_token": "<|padding|>"}
    content = json.loads(tokenizer.to_str())
    assert content["normalizer"] == {"type": "NFC"}
    assert content["pre_tokenizer"]["type"] == content["decoder"]["type"] == "ByteLevel"
    assert content["pre_tokenizer"]["add_prefix_space"] is False
    assert content["model"]["type"] == "BPE"


def test_training_is_deterministic_and_says_when_the_text_is_too_small(capsys: pytest.CaptureFixture) -> None:
    first, second = (train_tokenizer(generated_texts(50), 350, END)[0].to_str() for _ in range(2))
    assert first == second
    few = train_tokenizer(["abab"], 400, END)[0]
    assert 258 < few.get_vocab_size() < 400
    assert f"{few.get_vocab_size()} tokenizer entries only, not for 400" in capsys.readouterr().out


def test_auto_tokenizer_gives_the_same_ids(saved: Path, tmp_path: Path) -> None:
    tokenizer = DocumentTokenizer(saved, "given", END)
    shutil.copytree(saved, tmp_path / "elsewhere")
    loaded = AutoTokenizer.from_pretrained(str(tmp_path / "elsewhere"), local_files_only=True)
    texts = [*generated_texts(20, seed=5), "naïve 東京 🙂", "  spaces\t\n\n  "]
    assert [ids.tolist() for ids in tokenizer.encode_batch(texts)] == [loaded(text).input_ids for text in texts]
    assert loaded.eos_token_id == loaded.bos_token_id == loaded.unk_token_id == 0
    assert loaded.pad_token_id == 1
    assert len(loaded) == tokenizer.entry.vocab_size == 400
    assert tokenizer.entry.end_of_document_id == 0


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text() | st.lists(st.sampled_from(["<", "|>", END, "<|padding|>", "a", " "])).map("".join))
def test_decoding_gives_any_text_back_and_no_text_forges_a_mark(
    saved: Path, of_saved: DocumentTokenizer, text: str
) -> None:
    ids = of_saved.encode(text).tolist()
    assert 0 not in ids
    assert 1 not in ids
    decoded = Tokenizer.from_file(str(saved / "tokenizer.json")).decode(ids, skip_special_tokens=False)
    assert decoded == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("fast", [True, False])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.lists(st.sampled_from(PARTS) | st.text(max_size=3)).map("".join), max_size=4), data=st.data())
def test_texts_are_encoded_in_pieces_without_another_id(
    of_saved: DocumentTokenizer, of_library: DocumentTokenizer, fast: bool, texts: list[str], data: st.DataObject
) -> None:
    tokenizer = of_saved if fast else of_library
    assert tokenizer.fast == fast
    whole = [ids.tolist() for ids in tokenizer.encode_batch(texts)]
    long = [CutText(text, data.draw(st.lists(st.integers(0, len(text))))) for text in texts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenization.encoding.tokenizer, "PIECE_CHARACTERS", 3)
        assert [ids.tolist() for ids in tokenizer.encode_batch(texts)] == whole
        assert [ids.tolist() for ids in tokenizer.encode_batch(long)] == whole
        pieces = list(tokenizer._pieces("one two three four"))
        assert len(pieces) > 2
        assert "".join(pieces) == "one two three four"


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 4000), max_size=60))
def test_long_texts_are_held_a_few_pieces_at_a_time(of_saved: DocumentTokenizer, cuts: list[int]) -> None:
    text = "".join(generated_texts(10)).replace("e", "东\u0301")
    whole = of_saved.encode(text).tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenization.encoding.tokenizer, "PIECE_CHARACTERS", 50)
        patch.setattr(tokenization.encoding.tokenizer, "FARTHEST_CUT", 100)
        pieces = list(of_saved._pieces(text))
        assert "".join(pieces) == text
        assert max(map(len, pieces)) <= 100
        assert list(of_saved._pieces(CutText(text, cuts))) == pieces
        assert of_saved.encode(CutText(text, cuts)).tolist() == whole
        one_word = list(of_saved._pieces(CutText("x" * 1003, cuts)))
        assert [len(piece) for piece in one_word] == [100] * 10 + [3]


def test_a_tokenizer_with_no_safe_place_gets_texts_whole(small_tokenizer: Path, tmp_path: Path) -> None:
    content = json.loads((small_tokenizer / "tokenizer.json").read_text())
    content["pre_tokenizer"]["add_prefix_space"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = DocumentTokenizer(tmp_path, "given", END)
    assert not tokenizer.fast
    assert tokenizer.why_not_fast == "its pre-tokenizer sets add_prefix_space"
    library = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    texts = [*generated_texts(5), "", "x"]
    expected = [library.encode(text).ids for text in texts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenization.encoding.tokenizer, "PIECE_CHARACTERS", 300)
        assert [ids.tolist() for ids in tokenizer.encode_batch(texts)] == expected
        assert tokenizer.encode(CutText(texts[0], [5, 7])).tolist() == expected[0]
    assert tokenizer.check(texts) is None


@pytest.mark.parametrize("text", ["one two", END, "", "  é\r\n東京🙂 <|padding|>"])
def test_bytes_of_a_text_are_counted_from_its_ids(of_saved: DocumentTokenizer, text: str) -> None:
    ids = of_saved.encode(text)
    assert of_saved.text_bytes_of(ids) == len(text.encode())
    assert of_saved.text_bytes_of(np.append(ids, [0, 1]).astype(np.uint32)) == len(f"{text}{END}<|padding|>".encode())


def test_a_difference_from_the_library_ends_fast_encoding(saved: Path, tmp_path: Path) -> None:
    texts = generated_texts(20, seed=4)
    tokenizer = DocumentTokenizer(saved, "given", END)
    assert tokenizer.check([*texts, "", "x" * 10]) is None
    assert tokenizer.fast
    content = json.loads((saved / "tokenizer.json").read_text())
    merges, vocabulary = content["model"]["merges"], content["model"]["vocab"]
    first, second = ("".join(merges[number]) for number in (0, 1))
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    other = DocumentTokenizer(tmp_path, "given", END)
    assert other.check(texts) is None
    tokenizer._fast = other._fast  # as if the file had been exchanged between two looks at it
    told = tokenizer.check(["x", *texts])
    assert told is not None
    assert told == tokenizer.why_not_fast
    assert told.startswith("text 2 of those compared has other ids from token ")
    assert not tokenizer.fast
    library = DocumentTokenizer(saved, "given", END)._encode_with_library(texts)
    assert [ids.tolist() for ids in tokenizer.encode_batch(texts)] == [ids.tolist() for ids in library]


def test_a_large_vocabulary_has_ids_of_32_bits(small_tokenizer: Path, tmp_path: Path) -> None:
    content = json.loads((small_tokenizer / "tokenizer.json").read_text())
    content["model"]["vocab"]["Ġ"] = 1 << 16
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = DocumentTokenizer(tmp_path, "given", END)
    assert tokenizer.fast
    ids = tokenizer.encode("a \n b")
    assert ids.dtype == np.uint32
    assert 1 << 16 in ids.tolist()
    assert ids.tolist() == tokenizer._encode_with_library(["a \n b"])[0].tolist()
    assert tokenizer.text_bytes_of(ids) == 5


def test_a_folder_a_file_and_a_configuration_beside_it_are_understood(small_tokenizer: Path, tmp_path: Path) -> None:
    from_folder = load_tokenizer(str(small_tokenizer), END)
    from_file = load_tokenizer(str(small_tokenizer / "tokenizer.json"), END)
    assert from_folder[0].to_str() == from_file[0].to_str()
    assert (
        from_folder[1]
        == from_file[1]
        == dict.fromkeys(("bos_token", "eos_token", "unk_token"), END) | {"pad_token": "<|padding|>"}
    )
    configured = tmp_path / "configured"
    shutil.copytree(small_tokenizer, configured)
    config = {"pad_token": {"content": END}, "eos_token": "<|padding|>", "bos_token": "not in it", "unk_token": None}
    (configured / "tokenizer_config.json").write_text(json.dumps(config))
    roles = load_tokenizer(str(configured), END)[1]
    assert roles == {"pad_token": END, "eos_token": "<|padding|>", "bos_token": END, "unk_token": END}


def test_limits_on_length_in_a_given_tokenizer_do_not_cut_documents(small_tokenizer: Path, tmp_path: Path) -> None:
    limited = Tokenizer.from_file(str(small_tokenizer / "tokenizer.json"))
    limited.enable_truncation(4)
    limited.enable_padding(length=64)
    limited.save(str(tmp_path / "tokenizer.json"))
    save_tokenizer(*load_tokenizer(str(tmp_path), END), tmp_path / "saved")
    short, long = DocumentTokenizer(tmp_path / "saved", "given", END).encode_batch(["a", "a b c d e f g h i j"])
    assert len(short) == 1
    assert len(long) > 4


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "no such file or folder"), ("", "holds no tokenizer.json"), ("{}", "is not a tokenizer.json")],
)
def test_what_is_no_tokenizer_is_the_users_mistake(tmp_path: Path, content: str | None, told: str) -> None:
    folder = tmp_path / "x"
    if content is not None:
        folder.mkdir()
    if content:
        (folder / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=f"tokenize.tokenizer: .*{told}"):
        load_tokenizer(str(folder), END)


def test_an_end_of_document_outside_the_vocabulary_is_refused(small_tokenizer: Path) -> None:
    with pytest.raises(UserError, match=r"tokenize\.end_of_document: '</s>' is not in the vocabulary"):
        load_tokenizer(str(small_tokenizer), "</s>")


@pytest.mark.parametrize("fast", [True, False])
def test_another_process_is_handed_what_took_time_to_prepare(
    of_saved: DocumentTokenizer, of_library: DocumentTokenizer, fast: bool
) -> None:
    tokenizer = of_saved if fast else of_library
    texts = [*generated_texts(20, seed=9), f"a{END}  b<|padding|>", "\u0301naïve   東京 🙂", ""]
    handed: DocumentTokenizer = pickle.loads(pickle.dumps(tokenizer))
    assert handed.fast == fast
    assert handed.entry == tokenizer.entry
    assert [ids.tolist() for ids in handed.encode_batch(texts)] == [
        ids.tolist() for ids in tokenizer.encode_batch(texts)
    ]
    assert handed.check(texts) is None
    assert handed.text_bytes_of(handed.encode(texts[0])) == len(texts[0].encode())


@pytest.mark.parametrize("end", [END, "a", "<eod>"])
def test_what_is_saved_is_what_transformers_would_save(tmp_path: Path, end: str) -> None:
    tokenizer, roles = train_tokenizer(generated_texts(50), 350, END)
    tokenizer.add_tokens([AddedToken("<eod>", special=False)])
    roles |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), end)
    before = tokenizer.to_str()
    save_tokenizer(tokenizer, roles, tmp_path / "ours")
    assert tokenizer.to_str() == before
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles).save_pretrained(tmp_path / "theirs")
    ours, theirs = (tmp_path / name / "tokenizer.json" for name in ("ours", "theirs"))
    assert ours.read_text() == theirs.read_text()
    one, other = (AutoTokenizer.from_pretrained(tmp_path / name, local_files_only=True) for name in ("ours", "theirs"))
    assert type(one) is type(other)
    assert one.special_tokens_map == other.special_tokens_map == roles
    assert one.get_vocab() == other.get_vocab()
    text = f"a b , c<eod>{END} ' s"
    assert one(text) == other(text)
    assert one.decode(one(text).input_ids) == other.decode(one(text).input_ids) == text
