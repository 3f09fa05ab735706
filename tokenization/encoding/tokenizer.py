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

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from pipeline.console import console
from pipeline.data.manifest import TokenizerEntry
from pipeline.durable import fsync_file, sha256_file, write_json
from pipeline.errors import UserError, WorldError
from tokenization.documents import Text, pieces_of
from tokenization.encoding.fast_encoding import FastEncoder, byte_characters, fast_encoder

LARGEST_UINT16_VOCABULARY = 1 << 16
TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
PADDING_TOKEN = "<|padding|>"
TRAINED_NAME = "byte-level BPE trained on the sources"
# `tokenizers` takes over 100 times a text's size in memory while it encodes it.
PIECE_CHARACTERS = 1 << 20
FARTHEST_CUT = 2 * PIECE_CHARACTERS
# A letter or digit before a character that is neither: the byte-level pre-tokenizer always cuts there, with or without
# the text behind it, and no normalisation joins the two.
BETWEEN_WORDS = re.compile(
    "[A-Za-z0-9\u0400-\u0481\u0621-\u064a\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3]"
    "(?=[ \n.,;:!?\u3001\u3002\uff0c])"
)


class DocumentTokenizer:
    """Turns documents into token ids, without end-of-document marks, in this process alone.

    Special tokens are recognised nowhere in a text: the characters "<|endoftext|>" inside a document are encoded like
    any other characters. So a text cannot forge a document's end, and decoding gives every document back. GPT-NeoX's
    own preprocessing takes such characters for the mark; that is the one place where ids differ from it.

    Texts of more than `PIECE_CHARACTERS` are encoded in pieces, cut where that changes no id. Only where there is no
    such place on `PIECE_CHARACTERS` characters, a text is cut all the same, because memory is bounded. A tokenizer
    with another pre-tokenizer or normaliser has no place known to be safe: it gets texts whole, whatever the memory.

    Another process gets it pickled in a fraction of the time that loading it takes.
    """

    def __init__(self, folder: Path, name: str, end_of_document: str, slow_because: str | None = None) -> None:
        """Load `folder`/tokenizer.json, as `save_tokenizer` wrote it; `slow_because` asks for the library alone."""
        path = folder / TOKENIZER_FILE
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.encode_special_tokens = True
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.entry = TokenizerEntry(
            name=name,
            sha256=sha256_file(path),
            vocab_size=max(vocabulary.values()) + 1,
            end_of_document_id=vocabulary[end_of_document],
        )
        self.dtype = token_dtype(self.entry.vocab_size)
        """Of all ids."""
        self._cuts = _may_be_cut_between_words(self._tokenizer)
        self._bytes_of_id = _bytes_of_ids(self._tokenizer, self.entry.vocab_size)
        encoder = slow_because or fast_encoder(self._tokenizer, self.dtype)
        self._fast = encoder if isinstance(encoder, FastEncoder) else None
        self.why_not_fast = encoder if isinstance(encoder, str) else None
        """A few words on the tokenizer, to be printed; None where encoding is fast."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._tokenizer.encode_special_tokens = True  # tokenizer.json has no place for it

    @property
    def fast(self) -> bool:
        """Whether texts are encoded without the `tokenizers` library, where possible."""
        return self._fast is not None

    def encode(self, text: Text) -> np.ndarray:
        """Token ids of `text`, [tokens] of `dtype`; there may be none.

        Raises `UnicodeEncodeError` or `TypeError` where `text` holds half of a surrogate pair, which is no text.
        """
        pieces = self._pieces(text)
        ids = self._encode_piece(next(pieces))
        for piece in pieces:
            ids = ids if isinstance(ids, bytearray) else bytearray(ids)
            ids += self._encode_piece(piece)
        return np.frombuffer(ids, self.dtype)

    def encode_batch(self, texts: Sequence[Text]) -> list[np.ndarray]:
        """What `encode` gives for each text; less work than single calls where the library encodes."""
        if self._fast is not None:
            return [self.encode(text) for text in texts]
        ids: list[np.ndarray] = []
        group: list[str] = []
        characters = 0
        for text in texts:
            short = text if isinstance(text, str) and len(text) <= PIECE_CHARACTERS else None
            if short is None or characters + len(short) > PIECE_CHARACTERS:
                ids += self._encode_with_library(group)
                group, characters = [], 0
            if short is None:
                ids.append(self.encode(text))
            else:
                group.append(short)
                characters += len(short)
        return ids + self._encode_with_library(group)

    def check(self, texts: Iterable[Text]) -> str | None:
        """Compare fast ids with the library's on the first piece of each text; None where they are equal.

        At the first difference the library takes over for good; what is returned, and `why_not_fast`, say where it was.
        """
        for number, text in enumerate(texts):
            if self._fast is None:
                break
            piece = next(self._pieces(text))
            ids = np.frombuffer(self._encode_piece(piece), self.dtype)
            (expected,) = self._encode_with_library([piece])
            if not np.array_equal(ids, expected):
                common = min(len(ids), len(expected))
                place = int(np.argmax(np.append(ids[:common] != expected[:common], True)))
                self._fast = None
                self.why_not_fast = f"text {number + 1} of those compared has other ids from token {place} on"
                return self.why_not_fast
        return None

    def text_bytes_of(self, ids: np.ndarray) -> int:
        """Bytes of UTF-8 in the text that `ids`, unsigned and below the vocabulary's size, stand for.

        Exact for byte-level tokenizers; for others, a token counts as it is spelt in the vocabulary.
        """
        return int(self._bytes_of_id[ids].sum(dtype=np.int64))

    def _encode_piece(self, piece: str) -> bytes | bytearray:
        ids = self._fast.encode(piece) if self._fast is not None else None
        return self._encode_with_library([piece])[0].tobytes() if ids is None else ids

    def _encode_with_library(self, texts: Sequence[str]) -> list[np.ndarray]:
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, self.dtype) for encoding in encodings]

    def _pieces(self, text: Text) -> Iterator[str]:
        """Strings that make up `text`, at least one; the same ones however a `LongText` is cut itself."""
        if not self._cuts:
            yield "".join(pieces_of(text))
            return
        held, start = "", 0
        for more in pieces_of(text):
            held, start = held[start:] + more, 0
            # The longest piece and one character behind it must be there.
            while len(held) - start > FARTHEST_CUT:
                end = _cut(held, start)
                yield held[start:end]
                start = end
        while len(held) - start > PIECE_CHARACTERS:
            end = _cut(held, start)
            yield held[start:end]
            start = end
        if start == 0 or start < len(held):
            yield held[start:]


def _cut(text: str, start: int) -> int:
    """Where the piece of `text` that begins at `start` ends: between words if that is possible."""
    place = BETWEEN_WORDS.search(text, start + PIECE_CHARACTERS - 1, start + FARTHEST_CUT + 1)
    return place.end() if place else min(start + FARTHEST_CUT, len(text))


def _may_be_cut_between_words(tokenizer: Tokenizer) -> bool:
    """Whether pieces cut where `BETWEEN_WORDS` finds a place have the ids of the whole text."""
    words = tokenizer.pre_tokenizer
    return (
        isinstance(words, pre_tokenizers.ByteLevel)
        and words.use_regex
        and not words.add_prefix_space
        and isinstance(tokenizer.normalizer, normalizers.NFC | None)
        # An added token may reach across such a place, by what it is or by the spaces and words that it minds.
        and not any(
            not token.special
            and (BETWEEN_WORDS.search(token.content) or token.lstrip or token.rstrip or token.single_word)
            for token in tokenizer.get_added_tokens_decoder().values()
        )
    )


def _bytes_of_ids(tokenizer: Tokenizer, vocab_size: int) -> np.ndarray:
    """[vocab_size] UTF-8 bytes of each token's text; 0 where no token has that id."""
    bytes_of = np.zeros(vocab_size, np.int32)
    spelling_of_bytes = set(byte_characters()) if isinstance(tokenizer.decoder, decoders.ByteLevel) else set()
    for token, number in tokenizer.get_vocab(with_added_tokens=False).items():
        bytes_of[number] = len(token if spelling_of_bytes.issuperset(token) else token.encode())
    for number, token in tokenizer.get_added_tokens_decoder().items():
        bytes_of[number] = len(token.content.encode())
    return bytes_of


def token_dtype(vocab_size: int) -> np.dtype:
    """What ids are kept in, in memory and in shards."""
    return np.dtype(np.uint16 if vocab_size <= LARGEST_UINT16_VOCABULARY else np.uint32)


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
    """Write tokenizer.json and tokenizer_config.json, which `AutoTokenizer` loads without network.

    They are what `PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special_tokens)` would save: importing
    transformers for that takes longer than all else that is done before the first document is read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    missing = [token for token in dict.fromkeys(special_tokens.values()) if token not in known]
    if missing:
        tokenizer = Tokenizer.from_str(tokenizer.to_str())
        tokenizer.add_special_tokens(missing)
    config = {**special_tokens, "clean_up_tokenization_spaces": False, "tokenizer_class": "PreTrainedTokenizerFast"}
    tokenizer.save(str(folder / TOKENIZER_FILE))
    fsync_file(folder / TOKENIZER_FILE)
    write_json(folder / CONFIG_FILE, config)


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
    from transformers.utils.hub import cached_file

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
