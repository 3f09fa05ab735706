"""Training documents that share a long sequence of words with an evaluation set.

After the filter of GPT-3 (Brown et al. 2020, appendix C): sequences of 13 words, without case and punctuation, of all
evaluation sets are looked for in the training documents. A word is a longest run of Unicode letters and digits
(`str.isalnum`) of the text after `str.casefold`; all else separates words, so "don't" is two of them, and in scripts
that put no spaces between words a word is what stands between two punctuation marks. Strings of fewer words than a
sequence has are passed over: their shorter sequences are in too many documents that have nothing to do with them.

Sequences are compared by 64-bit polynomial hashes, all of a block at once in numpy. What agrees in the hash is compared
word by word before it counts, so nothing is found that is not there; a sequence is missed only where two different
ones of the evaluation sets have the same hash, one chance in 10^5 even with ten million of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.errors import UserError
from tokenization.documents import Text, pieces_of, printable
from tokenization.sources.compressed import read_blocks, split_lines

# Little enough for the arrays of a block to stay in the processor's cache.
BLOCK_CHARACTERS = 1 << 15
LONGEST_WORD_CHARACTERS = 1 << 16
"""A longer run of letters and digits is no word; sequences do not reach across it."""

_LETTER_BASE = 0x9E3779B97F4A7C15
_WORD_BASE = 0xD1342543DE82EF95
_SPACE = ord(" ")
_SURROGATES = "surrogatepass"


class Contamination:
    """The word sequences of evaluation sets, and the search for them."""

    def __init__(self, strings: Iterable[str], words: int) -> None:
        """Takes every sequence of `words` words in a row of each of `strings`."""
        self.words = words
        self.passed_over = 0
        """How many strings have fewer words than a sequence."""
        texts: list[str] = []
        hashes: list[np.ndarray] = []
        places: list[np.ndarray] = []
        offset = 0
        for string in strings:
            texts_before = len(texts)
            for text, found in _stretches(string, words):
                if len(found.hashes) < words:
                    continue
                sequences = _sequence_hashes(found.hashes, words)
                hashes.append(sequences)
                places.append(found.starts[: len(sequences)] + offset)
                texts.append(text + " ")
                offset += len(text) + 1
            self.passed_over += len(texts) == texts_before
        self._text = "".join(texts)
        merged = np.concatenate([np.empty(0, np.uint64), *hashes])
        self._hashes, first = np.unique(merged, return_index=True)
        self._places = np.concatenate([np.empty(0, np.int64), *places])[first]
        # 32 to 64 slots a sequence, a bit each: all but a few words of a text are settled by one look at this table,
        # which is small enough to stay in the processor's cache.
        slot_bits = max(16, (32 * len(self._hashes)).bit_length())
        self._shift = np.uint64(64 - slot_bits)
        self._taken = np.zeros(1 << (slot_bits - 3), np.uint8)
        slots = self._slots(self._hashes)
        np.bitwise_or.at(self._taken, slots >> 3, np.uint8(1) << (slots & 7).astype(np.uint8))

    def __len__(self) -> int:
        """Different sequences."""
        return len(self._hashes)

    @classmethod
    def from_files(cls, files: Sequence[Path], words: int) -> Contamination:
        """The sequences of every string value, nested ones too, of .jsonl, .jsonl.gz and .jsonl.zst files.

        Raises `UserError` for a line that is not JSON and where no file holds any sequence, `WorldError` for a file
        that cannot be read, is corrupt or cut short.
        """
        sequences = cls((string for path in files for string in _strings_of_file(path)), words)
        if not len(sequences):
            raise UserError(
                f"no string in {', '.join(map(str, files))} has {words} words: nothing could be found with them; "
                "give other files or fewer clean.contamination_words"
            )
        return sequences

    def find(self, text: Text) -> str | None:
        """The first sequence that `text` shares with an evaluation set: its words with a space between; None without.

        Memory in proportion to a block of the text, and to its longest `words` words in a row.
        """
        for stretch, found in _stretches(text, self.words):
            sequence = self._first_shared(stretch, found)
            if sequence is not None:
                return sequence
        return None

    def _slots(self, hashes: np.ndarray) -> np.ndarray:
        """Their highest bits, which depend on all of a sequence."""
        return (hashes >> self._shift).view(np.int64)

    def _first_shared(self, text: str, found: _Words) -> str | None:
        if len(found.hashes) < self.words:
            return None
        sequences = _sequence_hashes(found.hashes, self.words)
        slots = self._slots(sequences)
        candidates = ((self._taken.take(slots >> 3) >> (slots & 7).astype(np.uint8)) & 1).nonzero()[0]
        if not len(candidates):
            return None
        place = self._hashes.searchsorted(sequences[candidates])
        place[place == len(self._hashes)] = 0
        agrees = self._hashes[place] == sequences[candidates]
        for candidate, known in zip(candidates[agrees], self._places[place[agrees]], strict=True):
            here = _words_from(text, int(found.starts[candidate]), self.words)
            if here == _words_from(self._text, int(known), self.words):
                return " ".join(here)
        return None


class _Words(NamedTuple):
    starts: np.ndarray
    """[words], first character of each."""
    hashes: np.ndarray
    """[words], uint64."""


def _stretches(text: Text, words: int) -> Iterator[tuple[str, _Words]]:
    """`text`, casefolded, in stretches that overlap so that each sequence of `words` words is whole in just one.

    With every stretch come the words that end in it.
    """
    tail = ""
    for block, last in _blocks(text):
        stretch = tail + block
        found = _words(stretch)
        if last or not len(found.starts):
            yield stretch, found
            tail = ""
            continue
        # A word that touches the end of its block may go on in the next one.
        unfinished = int(stretch[-1].isalnum())
        yield stretch, _Words(found.starts, found.hashes[: len(found.hashes) - unfinished])
        if unfinished and len(stretch) - found.starts[-1] > LONGEST_WORD_CHARACTERS:
            tail = ""
        else:
            overlap = min(words - 1 + unfinished, len(found.starts))
            tail = stretch[found.starts[-overlap] :] if overlap else ""


def _words(text: str) -> _Words:
    """The words of a casefolded text."""
    if not text:
        return _Words(np.empty(0, np.int64), np.empty(0, np.uint64))
    if text.isascii():
        characters = np.frombuffer(text.encode("ascii"), np.uint8)
    else:
        characters = np.frombuffer(text.encode("utf-32-le", _SURROGATES), np.uint32)
    letters = _word_characters().take(characters)
    is_letter = letters != 0
    begins = is_letter.copy()
    begins[1:] &= ~is_letter[:-1]
    starts = begins.nonzero()[0]
    if not len(starts):
        return _Words(starts, np.empty(0, np.uint64))
    powers, inverses = _powers(_LETTER_BASE, len(text))
    # Characters that are no letters count nothing, so a sum from one word's start to the next one's is the word's.
    sums = np.add.reduceat(letters * powers, starts)
    hashes = sums * inverses[starts]
    hashes ^= hashes >> np.uint64(32)
    hashes *= np.uint64(_WORD_BASE)
    hashes ^= hashes >> np.uint64(29)
    return _Words(starts, hashes)


def _sequence_hashes(hashes: np.ndarray, words: int) -> np.ndarray:
    """Hashes of all sequences of `words` words: [len(hashes) - words + 1], uint64."""
    powers, inverses = _powers(_WORD_BASE, len(hashes))
    sums = (hashes * powers).cumsum()
    sequences = sums[words - 1 :].copy()
    sequences[1:] -= sums[:-words]
    return sequences * inverses[: len(sequences)]


def _powers(base: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The powers of `base` and of its inverse modulo 2^64, from the zeroth."""
    powers, inverses = _powers_to(base, max(BLOCK_CHARACTERS, 1 << (count - 1).bit_length()))
    return powers[:count], inverses[:count]


@cache
def _powers_to(base: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    def of(factor: int) -> np.ndarray:
        factors = np.full(count, factor, np.uint64)
        factors[0] = 1
        return np.multiply.accumulate(factors)

    return of(base), of(pow(base, -1, 1 << 64))


@cache
def _word_characters() -> np.ndarray:
    """[0x110000] uint64: for letters and digits a number of their own, 0 for all other characters."""
    characters = range(0x110000)
    is_word = np.fromiter((chr(character).isalnum() for character in characters), bool, len(characters))
    return np.where(is_word, np.arange(1, len(characters) + 1), 0).astype(np.uint64)


def _blocks(text: Text) -> Iterator[tuple[str, bool]]:
    """The text, casefolded, in blocks; and of each whether it is the last."""
    waiting: str | None = None
    for piece in pieces_of(text):
        for start in range(0, len(piece), BLOCK_CHARACTERS):
            if waiting is not None:
                yield waiting, False
            waiting = piece[start : start + BLOCK_CHARACTERS].casefold()
    if waiting is not None:
        yield waiting, True


def _words_from(text: str, start: int, count: int) -> list[str]:
    """The `count` words that begin at `start`, compared letter by letter."""
    words: list[str] = []
    position = start
    while len(words) < count and position < len(text):
        begin = position
        while position < len(text) and text[position].isalnum():
            position += 1
        words.append(text[begin:position])
        while position < len(text) and not text[position].isalnum():
            position += 1
    return words


def _strings_of_file(path: Path) -> Iterator[str]:
    lines = split_lines(read_blocks(path, lambda block: None))
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except (ValueError, RecursionError) as error:
            message = f"{printable(str(path))}: line {number} of this evaluation file is not JSON in UTF-8: {error}"
            raise UserError(message) from error
        yield from _strings_of_record(record)


def _strings_of_record(record: Any) -> Iterator[str]:
    waiting = [record]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            waiting.extend(reversed(list(value.values())))
        elif isinstance(value, list):
            waiting.extend(reversed(value))
