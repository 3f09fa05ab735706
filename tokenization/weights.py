"""Which documents a weight takes: exact, seeded, and decided part by part."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from typing import Literal


class Weight:
    """How often the training documents of a part are taken.

    The part is read once for each whole number in the weight and takes all documents; one more time, for what stands
    behind the point, some. So the copies of a document lie apart. Of n documents (tokens) that last time takes the
    share to within one document; where the weight is by tokens, to within the longest document.
    """

    def __init__(self, weight: float, by: Literal["documents", "tokens"], seed: int, part: int) -> None:
        exact = Fraction(str(weight))
        self._whole = int(exact)
        self._share = exact - self._whole
        self._by = by
        self._key = hashlib.blake2b(f"{seed}\0weight\0{part}".encode(), digest_size=32).digest()
        self._seen = 0
        self._taken = 0
        self._documents = 0

    @property
    def passes(self) -> int:
        """How often the part is read."""
        return self._whole + (self._share > 0)

    def takes(self, pass_number: int, tokens: int) -> bool:
        """Whether the next document, of `tokens` tokens, is taken in this pass; asked once a document and pass."""
        if pass_number < self._whole:
            return True
        self._documents += 1
        size = tokens if self._by == "tokens" else 1
        self._seen += size
        # Taken where that brings the sum nearer to the share, give or take a seeded quarter of the document.
        jitter = Fraction(self._random(), 1 << 65) - Fraction(1, 4)
        taken = self._share * self._seen - self._taken >= size * (Fraction(1, 2) + jitter)
        if taken:
            self._taken += size
        return taken

    def _random(self) -> int:
        """A uniform integer below 2 ** 64 for this document."""
        place = str(self._documents).encode()
        return int.from_bytes(hashlib.blake2b(place, key=self._key, digest_size=8).digest(), "big")
