"""A data set's tokenizer, given or trained, loads with AutoTokenizer and gives texts back."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

import tokenization.tokenizer
from pipeline.errors import UserError
from tests.tokenization.generated_records import END, generated_texts
from tokenization.tokenizer import DocumentTokenizer, load_tokenizer, save_tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, small_tokenizer: Path) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    save_tokenizer(*load_tokenizer(str(small_tokenizer), END), folder)
    return folder


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
    assert tokenizer.encode_batch(texts) == [loaded(text).input_ids for text in texts]
    assert loaded.eos_token_id == loaded.bos_token_id == loaded.unk_token_id == 0
    assert loaded.pad_token_id == 1
    assert len(loaded) == tokenizer.entry.vocab_size == 400
    assert tokenizer.entry.end_of_document_id == 0


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text() | st.lists(st.sampled_from(["<", "|>", END, "<|padding|>", "a", " "])).map("".join))
def test_decoding_gives_any_text_back_and_no_text_forges_a_mark(saved: Path, text: str) -> None:
    (ids,) = DocumentTokenizer(saved, "given", END).encode_batch([text])
    assert 0 not in ids
    assert 1 not in ids
    decoded = Tokenizer.from_file(str(saved / "tokenizer.json")).decode(ids, skip_special_tokens=False)
    assert decoded == unicodedata.normalize("NFC", text)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(
        st.lists(st.sampled_from(["ab", "Z9", " ", "  ", "\n", "\u0301", "'s", ".", "é", END])).map("".join), max_size=4
    )
)
def test_long_texts_are_encoded_in_pieces_without_another_id(saved: Path, texts: list[str]) -> None:
    tokenizer = DocumentTokenizer(saved, "given", END)
    whole = tokenizer.encode_batch(texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenization.tokenizer, "PIECE_CHARACTERS", 3)
        assert tokenizer.encode_batch(texts) == whole
        pieces = list(tokenizer._pieces("one two three four"))
        assert len(pieces) > 2
        assert "".join(pieces) == "one two three four"


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
