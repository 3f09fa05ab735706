"""The words of GPT-2's pre-tokenizer, found by Python's `re` as the `tokenizers` library finds them.

    's|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+

The library takes most of its time to find and hold words, not to merge them. `re` finds them about ten times as fast,
but does not know \\p{L} and \\p{N}, and its \\s is another one. So the characters of each class are asked of the
library's own regular expressions, which are of one Unicode version or another, and written out.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from functools import cache

import numpy as np
from tokenizers import Regex, normalizers

# Above 16 bits `re` compares a character with each range in turn, hundreds of them, so those are asked about last.
ABOVE_16_BITS = "\\U00010000-\\U0010ffff"
ONLY_ABOVE_16_BITS = "(?![\\x00-\\uffff])"
# Blocks above 16 bits that are common in text: letters of mathematics, emoji.
COMMON_BLOCKS = ((0x1D400, 0x1D800), (0x1F000, 0x1FB00))


class WordPattern:
    """Cuts text into the words that the byte-level pre-tokenizer cuts it into.

    With `longest_run` of 2 or more, runs of 2 to `longest_run` spaces are words of their own, as where each such run
    is an added token: they are split off first, leftmost and longest, and what is left between them is cut by itself.
    """

    def __init__(self, longest_run: int = 0) -> None:
        letters, numbers, spaces = _character_classes()
        low_letters, high_letters = _split_at_16_bits(letters)
        low_numbers, high_numbers = _split_at_16_bits(numbers)
        low_other = f"^{_ranges(spaces)}{low_letters}{low_numbers}"
        high_other = f"^\\x00-\\uffff{high_letters}{high_numbers}"
        self._short = re.compile(
            _alternatives(
                f"[{low_letters}][{low_letters}]*",
                f"[{low_numbers}][{low_numbers}]*",
                f"[{low_other}][{low_other}]*",
                spaces,
                longest_run,
            )
        ).findall
        self._any = re.compile(
            _alternatives(
                f"(?:[{low_letters}]+|{ONLY_ABOVE_16_BITS}[{high_letters}]+)+",
                f"(?:[{low_numbers}]+|{ONLY_ABOVE_16_BITS}[{high_numbers}]+)+",
                f"(?:[{low_other}{ABOVE_16_BITS}]+|{ONLY_ABOVE_16_BITS}[{high_other}]+)+",
                spaces,
                longest_run,
            )
        ).findall

    def words(self, text: str) -> list[str]:
        """The words of `text` in order; joined, they are `text`.

        Raises `UnicodeEncodeError` where `text` holds half of a surrogate pair.
        """
        if text.isascii() or len(text.encode("utf-16-le")) == 2 * len(text):
            return self._short(text)
        return self._any(text)


def is_composed(text: str) -> bool:
    """Whether `text` certainly is in normalisation form C already; False where that would take a closer look.

    Asking the library's normaliser costs ten times as much. The answer holds for any version of Unicode: it is given
    for characters only that have been assigned, that no normalisation changes, and that combine with nothing before
    them, which Unicode's stability policy keeps so for good.
    """
    if text.isascii():
        return True
    certain = _composed_text().match(text)
    return certain is not None and certain.end() == len(text)


def _alternatives(letters: str, numbers: str, other: str, spaces: str, longest_run: int) -> str:
    """The pattern, with the most frequent alternative first; no two of them can begin at the same place.

    Where runs of spaces are split off first, a space before a space belongs to a run and to nothing else, and a
    look-ahead that meets a run has met the end.
    """
    space = _ranges(spaces)
    if longest_run < 2:
        after_space = f"{letters}|{numbers}|{other}"
        in_blank = f"[{space}]"
    else:
        after_space = f"{letters}|{numbers}|{other}| {{1,{longest_run - 1}}}"
        in_blank = f"(?:[{_ranges(spaces.replace(' ', ''))}]| (?! ))"
    return f" (?:{after_space})|{letters}|'(?:[sdmt]|ll|ve|re)|{numbers}|{other}|{in_blank}+(?![^{space}])|[{space}]"


@cache
def _character_classes() -> tuple[str, str, str]:
    """All letters, all numbers and all white space, as the regular expressions of `tokenizers` know them."""
    numbers = np.arange(0x110000, dtype="<u4")
    every = np.delete(numbers, slice(0xD800, 0xE000)).tobytes().decode("utf-32-le")
    some = _without(r"[^\p{L}\p{N}\s]+", every)
    return _without(r"[^\p{L}]+", some), _without(r"[^\p{N}]+", some), _without(r"\S+", some)


def _without(pattern: str, text: str) -> str:
    return normalizers.Replace(Regex(pattern), "").normalize_str(text)


@cache
def _composed_text() -> re.Pattern[str]:
    """Matches the characters at a text's start that are certain not to change, whatever stands around them."""
    low = range(0x10000)
    # Hangul's vowels and final consonants compose with what is before them, though no table says so.
    composing = {*map(chr, range(0x1100, 0x1200)), *map(chr, range(0xD7B0, 0xD800))}
    for number in low:
        parts = unicodedata.decomposition(chr(number)).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            composing.add(chr(int(parts[1], 16)))
    certain = [
        character
        for block in (low, *(range(*block) for block in COMMON_BLOCKS))
        for character in map(chr, block)
        if unicodedata.category(character) not in ("Cn", "Cs")
        and unicodedata.combining(character) == 0
        and character not in composing
        and unicodedata.normalize("NFC", character) == character
    ]
    return re.compile(f"[{_ranges(''.join(certain))}]*")


def _split_at_16_bits(characters: str) -> tuple[str, str]:
    """The ranges of `characters`, in ascending order, that 16 bits hold; and those above."""
    low = bisect_left(characters, "\U00010000")
    return _ranges(characters[:low]), _ranges(characters[low:])


def _ranges(characters: str) -> str:
    """`characters`, in ascending order, as the inside of a regular expression's brackets."""
    numbers = np.frombuffer(characters.encode("utf-32-le"), np.uint32)
    breaks = np.flatnonzero(np.diff(numbers) != 1)
    firsts = numbers[np.concatenate(([0], breaks + 1))]
    lasts = numbers[np.concatenate((breaks, [len(numbers) - 1]))]
    return "".join(f"{re.escape(chr(first))}-{re.escape(chr(last))}" for first, last in zip(firsts, lasts, strict=True))
