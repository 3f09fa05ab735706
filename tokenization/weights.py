"""Which documents a weight takes: exact, seeded, without favour, and decided part by part."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from fractions import Fraction
from typing import Generic, Literal, TypeVar

Item = TypeVar("Item")

ROUNDING = 1e-9
"""A probability that is so near to 0 or 1 is decided."""


class Weight(Generic[Item]):
    """How often the training documents of a part are taken.

    The part is read once for each whole number in the weight and takes all documents; one more time, for what stands
    behind the point, some. So the copies of a document lie apart.

    That last time every document has the same chance, and yet the documents (or tokens) taken are the share of all to
    within one document: two undecided documents trade their chances, one losing what the other gains in documents (or
    tokens), until one of them is decided (the cube method with one balancing variable; Deville and Tille, "Efficient
    balanced sampling", 2004). So one document at a time waits for its decision.
    """

    def __init__(self, weight: float, by: Literal["documents", "tokens"], seed: int, part: int) -> None:
        exact = Fraction(str(weight))
        self._whole = int(exact)
        self._share = float(exact - self._whole)
        self._by = by
        digest = hashlib.blake2b(f"{seed}\0weight\0{part}".encode(), digest_size=8).digest()
        self._chance = random.Random(int.from_bytes(digest, "big"))
        self._waiting: tuple[Item, float, float] | None = None
        """An undecided document, its size, and the probability that it is taken."""

    @property
    def passes(self) -> int:
        """How often the part is read."""
        return self._whole + (self._share > 0)

    def take(self, pass_number: int, item: Item, tokens: int) -> Iterator[Item]:
        """What is taken now that a document of `tokens` tokens comes in this pass: it, the one before it, or none."""
        if pass_number < self._whole:
            yield item
            return
        size = float(tokens) if self._by == "tokens" else 1.0
        if self._waiting is None:
            self._waiting = item, size, self._share
            return
        other, other_size, other_share = self._waiting
        share = self._share
        # How much of the sum of sizes may move from the new one to the waiting one, and back.
        forth = min((1.0 - other_share) * other_size, share * size)
        back = min(other_share * other_size, (1.0 - share) * size)
        moved = forth if self._chance.random() * (forth + back) < back else -back
        other_share, share = other_share + moved / other_size, share - moved / size
        self._waiting = None
        for candidate, candidate_size, its_share in ((other, other_size, other_share), (item, size, share)):
            if its_share > 1.0 - ROUNDING:
                yield candidate
            elif its_share > ROUNDING:
                self._waiting = candidate, candidate_size, its_share

    def rest(self) -> Iterator[Item]:
        """The last undecided document, if chance takes it; ends the part."""
        if self._waiting is not None and self._chance.random() < self._waiting[2]:
            yield self._waiting[0]
        self._waiting = None
