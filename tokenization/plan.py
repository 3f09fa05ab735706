"""The parts of the work: what is done, or not done, as a whole.

Parts follow from the inputs and the recipe alone, not from how many processes work on them, on how many nodes: so any
of them may make any part, and the shards are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from pipeline.durable import sha256_json
from pipeline.recipe_tokenize import TokenizeSection
from tokenization.documents import Slice, SourceReader

AUTOMATIC_PARTS = 64
SMALLEST_AUTOMATIC_PART = 4 << 20
LARGEST_AUTOMATIC_PART = 4 << 30


@dataclass(frozen=True)
class Part:
    """Slices of one source that are packed together."""

    number: int
    """From 0, in reading order: sources as in the recipe, training before validation."""
    source: int
    """Number of the source in the recipe."""
    slices: tuple[Slice, ...]

    @property
    def size(self) -> int:
        """About how many bytes of text it holds."""
        return sum(piece.size for piece in self.slices)

    def key(self, made_with: str) -> str:
        """Hash of the part's inputs and of `made_with`, which names all else that decides its result."""
        return sha256_json({"made_with": made_with, "part": asdict(self)})

    def __str__(self) -> str:
        files = sorted({piece.input for piece in self.slices})
        more = f" and {len(files) - 1} more inputs" if len(files) > 1 else ""
        return f"part {self.number + 1} ({files[0]}{more})"


@dataclass(frozen=True)
class Share:
    """The parts of one of several processes: number of of, counted from 1."""

    number: int
    of: int

    def taken_from(self, parts: Sequence[Part]) -> Sequence[Part]:
        return parts[self.number - 1 :: self.of]


def size_of_parts(section: TokenizeSection, readers: Sequence[SourceReader]) -> int:
    """Bytes of text in a part, roughly."""
    if section.part_bytes != "auto":
        return section.part_bytes
    total = sum(reader.text_bytes for reader in readers)
    return min(max(total // AUTOMATIC_PARTS, SMALLEST_AUTOMATIC_PART), LARGEST_AUTOMATIC_PART)


def make_parts(readers: Sequence[SourceReader], part_bytes: int) -> list[Part]:
    """All parts: large inputs cut, small neighbours of the same source and split put together."""
    parts: list[Part] = []
    for source, reader in enumerate(readers):
        group: list[Slice] = []
        for piece in reader.slices(part_bytes):
            full = sum(member.size for member in group) + piece.size > part_bytes
            if group and (full or group[-1].split != piece.split):
                parts.append(Part(len(parts), source, tuple(group)))
                group = []
            group.append(piece)
        if group:
            parts.append(Part(len(parts), source, tuple(group)))
    return parts


def keys_with_duplicates(parts: Sequence[Part], keys: Sequence[str]) -> list[str]:
    """Keys of the parts where duplicates are removed: what a part keeps depends on all parts before it too."""
    found = list(keys)
    before = ""
    for number in order_for_duplicates(parts):
        before = sha256_json([before, keys[number]])
        found[number] = before
    return found


def order_for_duplicates(parts: Sequence[Part]) -> list[int]:
    """Part numbers in the order in which the first of equal documents is the one to keep: validation sets first."""
    return sorted(range(len(parts)), key=lambda number: (parts[number].slices[0].split != "validation", number))
