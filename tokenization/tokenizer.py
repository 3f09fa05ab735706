"""The tokenizer of a data set: given or trained, written beside the shards, and the only one that encodes.

What encodes is always the tokenizer/tokenizer.json that stands in the shards' folder afterwards, so that whoever loads
it with `AutoTokenizer` gets the same ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.utils.hub import cached_file

from pipeline.console import console
from pipeline.data.manifest import TokenizerEntry
from pipeline.durable import fsync_file, fsync_folder, sha256_file
from pipeline.errors import UserError, WorldError

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
PADDING_TOKEN = "<|padding|>"
TRAINED_NAME = "byte-level BPE trained on the sources"
# `tokenizers` takes over 100 times a text's size in memory while it encodes it.
PIECE_CHARACTERS = 1 << 20
# Words on both sides of one space or line feed: the byte-level pre-tokenizer always cuts before that space.
BETWEEN_WORDS = re.compile(r"[A-Za-z0-9](?=[ \n][A-Za-z0-9])")


class DocumentTokenizer:
    """Turns documents into token ids, without end-of-document marks.

    Special tokens are recognised nowhere in a text: the characters "<|endoftext|>" inside a document are encoded like
    any other characters. So a text cannot forge a document's end, and decoding gives every document back. GPT-NeoX's
    own preprocessing takes such characters for the mark; that is the one place where ids differ from it.
    """

    def __init__(self, folder: Path, name: str, end_of_document: str) -> None:
        """Load `folder`/tokenizer.json, as `save_tokenizer` wrote it."""
        path = folder / TOKENIZER_FILE
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.encode_special_tokens = True
        words = self._tokenizer.pre_tokenizer
        self._cuts_between_words = (
            isinstance(words, pre_tokenizers.ByteLevel)
            and words.use_regex
            and not words.add_prefix_space
            and isinstance(self._tokenizer.normalizer, normalizers.NFC | None)
        )
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.entry = TokenizerEntry(
            name=name,
            sha256=sha256_file(path),
            vocab_size=max(vocabulary.values()) + 1,
            end_of_document_id=vocabulary[end_of_document],
        )

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, on all cores; a text may give none.

        A very long text is encoded in pieces, which bounds the memory, where that changes no id.
        """
        ids: list[list[int]] = [[] for _ in texts]
        group: list[tuple[int, str]] = []
        characters = 0
        for number, text in enumerate(texts):
            for piece in self._pieces(text):
                group.append((number, piece))
                characters += len(piece)
                if characters >= PIECE_CHARACTERS:
                    self._encode_into(ids, group)
                    group, characters = [], 0
        self._encode_into(ids, group)
        return ids

    def _encode_into(self, ids: list[list[int]], group: list[tuple[int, str]]) -> None:
        encodings = self._tokenizer.encode_batch_fast([piece for _, piece in group], add_special_tokens=False)
        for (number, _), encoding in zip(group, encodings, strict=True):
            ids[number].extend(encoding.ids)

    def _pieces(self, text: str) -> Iterator[str]:
        start = 0
        while self._cuts_between_words and len(text) - start > PIECE_CHARACTERS:
            place = BETWEEN_WORDS.search(text, start + PIECE_CHARACTERS)
            if place is None:
                break
            yield text[start : place.end()]
            start = place.end()
        yield text[start:]


def load_tokenizer(where: str, end_of_document: str) -> tuple[Tokenizer, dict[str, str]]:
    """A given tokenizer and its special tokens by role ("eos_token", ...).

    `where` is a folder with a tokenizer.json (a tokenizer_config.json beside it is honoured), the path of a
    tokenizer.json, or a hub id. Raises `UserError` where there is none, it cannot be read, or lacks `end_of_document`.
    """
    tokenizer_file, config_file = _find_tokenizer(where)
    try:
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
    except Exception as error:  # the Rust library raises bare Exception for every malformed file
        raise UserError(f"tokenize.tokenizer: {tokenizer_file} is not a tokenizer.json: {error}") from error
    # A model's own limits on length are none of a document's.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if tokenizer.token_to_id(end_of_document) is None:
        raise UserError(
            f"tokenize.end_of_document: {end_of_document!r} is not in the vocabulary of {tokenizer_file}: "
            "name the token that ends a document there"
        )
    config: Any = {}
    if config_file is not None:
        try:
            config = json.loads(config_file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"tokenize.tokenizer: {config_file} is not JSON: {error}") from error
    return tokenizer, _special_tokens(tokenizer, config, end_of_document)


def train_tokenizer(texts: Iterable[str], vocab_size: int, end_of_document: str) -> tuple[Tokenizer, dict[str, str]]:
    """A byte-level BPE with GPT-NeoX's settings, learned from `texts`; and its special tokens by role.

    NFC, ByteLevel without a prefix space, ids 0 and 1 for `end_of_document` and <|padding|>, then the 256 bytes, then
    merges up to `vocab_size` entries; fewer, with a printed note, where the text has no more pairs to merge.
    """
    if end_of_document == PADDING_TOKEN:
        raise UserError(f"tokenize.end_of_document: {PADDING_TOKEN!r} is the padding token: name another")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[end_of_document, PADDING_TOKEN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    entries = tokenizer.get_vocab_size(with_added_tokens=True)
    if entries < vocab_size:
        console.print(
            f"the text has pairs for {entries:,} tokenizer entries only, not for {vocab_size:,}", markup=False
        )
    return tokenizer, _special_tokens(tokenizer, {}, end_of_document)


def save_tokenizer(tokenizer: Tokenizer, special_tokens: Mapping[str, str], folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, which `AutoTokenizer` loads without network."""
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special_tokens)
    wrapped.save_pretrained(str(folder))
    for name in (TOKENIZER_FILE, CONFIG_FILE):
        fsync_file(folder / name)
    fsync_folder(folder)


def _find_tokenizer(where: str) -> tuple[Path, Path | None]:
    """Paths of tokenizer.json and, where there is one, of tokenizer_config.json."""
    path = Path(where).expanduser()
    if path.is_file():
        config = path.with_name(CONFIG_FILE)
        return path, config if config.is_file() else None
    if path.is_dir():
        if not (path / TOKENIZER_FILE).is_file():
            raise UserError(f"tokenize.tokenizer: {path} holds no {TOKENIZER_FILE}")
        return _find_tokenizer(str(path / TOKENIZER_FILE))
    if where.startswith(("/", ".", "~")) or where.endswith(".json") or where.count("/") > 1:
        raise UserError(f"tokenize.tokenizer: {where}: no such file or folder")
    try:
        tokenizer_file = cached_file(where, TOKENIZER_FILE)
        config_file = cached_file(where, CONFIG_FILE, _raise_exceptions_for_missing_entries=False)
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"tokenize.tokenizer: {where} is neither a file nor a folder here, and the hub does not give it: {reason}"
        ) from error
    if tokenizer_file is None:
        raise WorldError(f"tokenize.tokenizer: the hub has {where} but gave no {TOKENIZER_FILE}")
    return Path(tokenizer_file), Path(config_file) if config_file else None


def _special_tokens(tokenizer: Tokenizer, config: Any, end_of_document: str) -> dict[str, str]:
    """Roles as `config` gives them; else the end-of-document token, and <|padding|> for padding where it exists."""
    roles: dict[str, str] = dict.fromkeys(("bos_token", "eos_token", "unk_token"), end_of_document)
    if tokenizer.token_to_id(PADDING_TOKEN) is not None:
        roles["pad_token"] = PADDING_TOKEN
    for role in ("bos_token", "eos_token", "unk_token", "pad_token"):
        given = config.get(role) if isinstance(config, dict) else None
        token = given.get("content") if isinstance(given, dict) else given
        if isinstance(token, str) and tokenizer.token_to_id(token) is not None:
            roles[role] = token
    return roles
