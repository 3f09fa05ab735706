"""Parts hold every slice once, in order, and follow from the inputs alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenization.generated_records import MakeRun, generated_texts, record_lines
from tokenization.documents import Item, Slice, Split
from tokenization.plan import (
    SMALLEST_AUTOMATIC_PART,
    keys_with_duplicates,
    make_parts,
    order_for_duplicates,
    size_of_parts,
)
from tokenization.sources.open_sources import open_sources


class Slices:
    """A reader that has slices of given sizes and nothing in them."""

    train_files: tuple[Path, ...] = ()
    validation_files: tuple[Path, ...] = ()

    def __init__(self, name: str, sizes: list[tuple[Split, int]]) -> None:
        self.name = name
        self._sizes = sizes
        self.text_bytes = sum(size for _, size in sizes)

    def slices(self, part_bytes: int) -> list[Slice]:
        return [
            Slice(f"{self.name}{number}", 0, None, size, "", split) for number, (split, size) in enumerate(self._sizes)
        ]

    def read(self, piece: Slice, advance) -> Iterator[Item]:
        raise AssertionError("planning reads nothing")


sizes = st.lists(st.integers(1, 300), max_size=12).flatmap(
    lambda train: st.lists(st.integers(1, 300), max_size=4).map(
        lambda validation: [("train", size) for size in train] + [("validation", size) for size in validation]
    )
)


@settings(max_examples=200, deadline=None)
@given(sources=st.lists(sizes, min_size=1, max_size=4), part_bytes=st.integers(1, 500))
def test_every_slice_is_in_one_part_and_in_order(sources, part_bytes: int) -> None:
    readers = [Slices(f"source{number}-", own) for number, own in enumerate(sources)]
    parts = make_parts(readers, part_bytes)
    assert [part.number for part in parts] == list(range(len(parts)))
    assert [piece for part in parts for piece in part.slices] == [
        piece for reader in readers for piece in reader.slices(part_bytes)
    ]
    for part in parts:
        assert len({piece.split for piece in part.slices}) == 1
        assert part.size <= part_bytes or len(part.slices) == 1
    for before, behind in pairwise(parts):
        if before.source == behind.source and before.slices[0].split == behind.slices[0].split:
            assert before.size + behind.slices[0].size > part_bytes  # none is smaller than it has to be
    order = order_for_duplicates(parts)
    assert sorted(order) == list(range(len(parts)))
    splits = [parts[number].slices[0].split for number in order]
    assert splits == sorted(splits, reverse=True)


def test_a_key_changes_with_all_that_decides_a_part() -> None:
    (part,) = make_parts([Slices("a", [("train", 5)])], 10)
    keys = {
        part.key("made with"),
        part.key("other"),
        replace(part, number=1).key("made with"),
        replace(part, slices=(replace(part.slices[0], identity="changed"),)).key("made with"),
        replace(part, slices=(replace(part.slices[0], start=1),)).key("made with"),
    }
    assert len(keys) == 5
    assert part.key("made with") in keys
    assert str(part) == "part 1 (a0)"


def test_with_duplicates_removed_a_key_changes_with_every_part_before() -> None:
    parts = make_parts([Slices("a", [("train", 5), ("train", 6), ("validation", 7)])], 1)
    keys = keys_with_duplicates(parts, ["one", "two", "three"])
    assert len({*keys, "one", "two", "three"}) == 6
    # The validation set counts before the training parts.
    assert keys_with_duplicates(parts, ["one", "other", "three"])[::2] == keys[::2]
    assert keys_with_duplicates(parts, ["one", "other", "three"])[1] != keys[1]
    assert all(map(str.__ne__, keys_with_duplicates(parts, ["one", "two", "other"]), keys))


def test_parts_are_sized_by_all_text_unless_the_recipe_says(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(record_lines(generated_texts(30)))
    source = {"kind": "jsonl", "train": [str(tmp_path / "x.jsonl")], "validation_share": 0.1}
    recipe, _ = make_run([source])
    assert size_of_parts(recipe.tokenize, open_sources(recipe.tokenize, 0, None)) == SMALLEST_AUTOMATIC_PART
    terabyte = Slices("pile", [("train", 10**12)])
    assert size_of_parts(recipe.tokenize, [terabyte]) == 4 << 30
    assert size_of_parts(recipe.tokenize, [Slices("some", [("train", 64 << 30)])]) == 1 << 30
    recipe, _ = make_run([source], part_bytes=1000)
    assert size_of_parts(recipe.tokenize, [terabyte]) == 1000
