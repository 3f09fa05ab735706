"""Token ids equal to those of the `tokenizers` library, several times as fast, for byte-level BPE.

`word_pattern` cuts the text into words, a dictionary knows the ids of words met before, and tiktoken merges the new
ones. That this gives the library's ids is shown for each tokenizer before it is used, not assumed:

- tiktoken merges any two neighbours whose bytes joined are a token, the library only the pairs of its list. Let every
  token be made by one pair only, whose members are bytes or made by earlier pairs, and let the library make each token
  out of that token's own text. Then at every step the best neighbours for tiktoken are a pair of the list: other
  neighbours that join to the token T would be a state in which the library, given T's text, could not make T.
- Words are those of GPT-2's pattern, or the tokenizer is refused.
- Added tokens that are runs of spaces are words of that pattern. A text that holds any other added token is left to
  the library. Special tokens are recognised nowhere, as with the library's `encode_special_tokens`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from tiktoken import Encoding
from tokenizers import Tokenizer, normalizers

from tokenization.encoding.word_pattern import WordPattern, is_composed

# Words kept with their ids, and the longest kept: some 80 MB of ordinary text's, 300 MB at worst.
KEPT_WORDS = 1 << 19
KEPT_CHARACTERS = 32
BYTES_OF_UTF8 = (*range(0x80), *range(0x80, 0xC0), *range(0xC2, 0xF5))
COMPOSE = normalizers.NFC()


class FastEncoder:
    """Encodes strings of any length; made by `fast_encoder`.

    Pickled, it is what it was made of: another process need not show again that the ids are the library's. Words met
    so far stay behind.
    """

    def __init__(
        self,
        *,
        ranks: Mapping[bytes, int],
        ids: np.ndarray,
        runs: Mapping[str, int],
        other_added: Sequence[str],
        composes: bool,
        word_pattern: WordPattern | None = None,
    ) -> None:
        """`ranks` has the bytes and merged tokens in order of their merges, `ids` [ranks] their ids.

        `runs` are the added tokens that are runs of 2 and more spaces, with their ids; `other_added` the others.
        `composes` says whether text is brought into normalisation form C. The dtype of `ids` becomes that of all.
        `word_pattern` is the one for `runs`, where it has been made already.
        """
        self.dtype = ids.dtype
        self._word_pattern = word_pattern or WordPattern(max(map(len, runs), default=0))
        self._again = partial(
            FastEncoder,
            ranks=ranks,
            ids=ids,
            runs=runs,
            other_added=other_added,
            composes=composes,
            word_pattern=self._word_pattern,
        )
        self._composes = composes
        self._other_added = re.compile("|".join(map(re.escape, other_added))) if other_added else None
        # The words are cut already: the pattern is never used.
        merges = Encoding("words", pat_str="(?s:.+)", mergeable_ranks=dict(ranks), special_tokens={})
        self._ids_of_word = _IdsOfWords(
            {run: ids.dtype.type(number).tobytes() for run, number in runs.items()},
            merges._encode_single_piece,
            [number.tobytes() for number in ids],
        ).__getitem__

    def __reduce__(self) -> tuple[Callable[[], FastEncoder], tuple[()]]:
        return self._again, ()

    def encode(self, text: str) -> bytes | None:
        """The ids of `text`, one after the other as `dtype`; None where the library has to encode it.

        Raises `UnicodeEncodeError` where `text` holds half of a surrogate pair.
        """
        if self._holds_added_token(text):
            return None
        if self._composes and not is_composed(text):
            text.encode()  # before the normaliser meets what is no text
            text = COMPOSE.normalize_str(text)
            if self._holds_added_token(text):
                return None
        return b"".join(map(self._ids_of_word, self._word_pattern.words(text)))

    def _holds_added_token(self, text: str) -> bool:
        return self._other_added is not None and self._other_added.search(text) is not None


def fast_encoder(tokenizer: Tokenizer, dtype: np.dtype) -> FastEncoder | str:
    """An encoder that gives `tokenizer`'s ids as `dtype`; or, in a few words, why there can be none."""
    content = json.loads(tokenizer.to_str())
    reason = _unknown_setting(content)
    if reason is not None:
        return reason
    model = content["model"]
    vocabulary: dict[str, int] = model["vocab"]
    ranks = _ranks(vocabulary, [tuple(_members(merge)) for merge in model["merges"]])
    if isinstance(ranks, str):
        return ranks
    for token in ranks:
        if len(token) > 1 and [made.id for made in tokenizer.model.tokenize(token)] != [vocabulary[token]]:
            return f"its merges do not make the token {token!r} out of that token's own text"
    added = [token for token in content["added_tokens"] if not token["special"]]
    runs = [token for token in added if _is_plain_run(token)]
    lengths = sorted(len(token["content"]) for token in runs)
    if lengths != list(range(2, len(lengths) + 2)) or len({token["normalized"] for token in runs}) > 1:
        return "its added runs of spaces are not one of each length from 2 on"
    # Special tokens are passed over as they stand, with whatever run of spaces they hold or touch.
    others = [token for token in added if token not in runs]
    others += [token for token in content["added_tokens"] if token["special"] and _meets_runs(token["content"])]
    bytes_of = byte_characters()
    return FastEncoder(
        ranks={bytes(map(bytes_of.__getitem__, token)): rank for token, rank in ranks.items()},
        # Bytes that UTF-8 does not use may be missing from the vocabulary.
        ids=np.array([vocabulary.get(token, 0) for token in ranks], dtype),
        runs={token["content"]: token["id"] for token in runs},
        other_added=sorted({form for token in others for form in _forms(token["content"])}),
        composes=content["normalizer"] is not None,
    )


def byte_characters() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for.

    Printable characters of Latin-1 stand for their own bytes; the other bytes take the characters from U+0100 on.
    """
    plain = [byte for byte in range(256) if chr(byte).isprintable() and byte != ord(" ")]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}


class _IdsOfWords(dict[str, bytes]):
    """Ids of words, as bytes; those not known yet are merged on the way."""

    def __init__(
        self, always: Mapping[str, bytes], merge: Callable[[str], list[int]], ids_of_rank: Sequence[bytes]
    ) -> None:
        """`merge` gives the ranks of a word's tokens; the words in `always` are never merged."""
        super().__init__(always)
        self._always = always
        self._merge = merge
        self._ids_of_rank = ids_of_rank

    def __missing__(self, word: str) -> bytes:
        ids = b"".join([self._ids_of_rank[rank] for rank in self._merge(word)])
        if len(word) <= KEPT_CHARACTERS:
            if len(self) >= KEPT_WORDS:
                # The frequent words are back at once, which costs less than to keep account of them.
                self.clear()
                self.update(self._always)
            self[word] = ids
        return ids


def _unknown_setting(content: Mapping[str, Any]) -> str | None:
    """What in a tokenizer.json is not understood here."""
    model, words, normalizer = content["model"], content["pre_tokenizer"], content["normalizer"]
    if model["type"] != "BPE":
        return f"its model is {model['type']}, not BPE"
    for setting in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges"):
        if model.get(setting):
            return f"its model sets {setting}"
    if words is None or words["type"] != "ByteLevel":
        return f"its pre-tokenizer is {words and words['type']}, not ByteLevel"
    if words["add_prefix_space"]:
        return "its pre-tokenizer sets add_prefix_space"
    if not words.get("use_regex", True):
        return "its pre-tokenizer does not cut text into words"
    if normalizer is not None and normalizer["type"] != "NFC":
        return f"its normalizer is {normalizer['type']}, not NFC"
    for setting in ("truncation", "padding"):
        if content[setting] is not None:
            return f"it sets {setting}"
    return None


def _ranks(vocabulary: Mapping[str, int], merges: Sequence[tuple[str, ...]]) -> dict[str, int] | str:
    """All bytes, then what each merge makes, with their ranks; or why that is no order of merges for tiktoken."""
    byte_of = byte_characters()
    for character, byte in byte_of.items():
        if character not in vocabulary and byte in BYTES_OF_UTF8:
            return f"its vocabulary lacks the byte 0x{byte:02x}"
    ranks = {character: rank for rank, character in enumerate(byte_of)}
    for first, second in merges:
        made = first + second
        if made in ranks:
            return f"two of its merges make the token {made!r}"
        if first not in ranks or second not in ranks:
            return f"it merges {first!r} and {second!r} before it makes them"
        ranks[made] = len(ranks)
    return ranks


def _members(merge: str | list[str]) -> list[str]:
    """The pair of a merge, of which a tokenizer.json has two spellings."""
    return merge.split(" ") if isinstance(merge, str) else merge


def _is_plain_run(added_token: Mapping[str, Any]) -> bool:
    content = added_token["content"]
    flags = ("single_word", "lstrip", "rstrip")
    return content == len(content) * " " and not any(added_token[flag] for flag in flags)


def _meets_runs(content: str) -> bool:
    return "  " in content or content[:1] == " " or content[-1:] == " "


def _forms(content: str) -> set[str]:
    """How an added token may stand in a text, which it is looked for in before and after normalisation."""
    return {content, COMPOSE.normalize_str(content)}
