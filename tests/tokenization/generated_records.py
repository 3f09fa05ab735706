"""Generated text and records for the tests of tokenization."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence

from pipeline.recipe import Recipe
from pipeline.run_folder import RunFolder

END = "<|endoftext|>"
MakeRun = Callable[..., tuple[Recipe, RunFolder]]


def generated_texts(count: int, seed: int = 0, words: int = 60) -> list[str]:
    """Texts of made-up words, `words` each on average."""
    chance = random.Random(seed)
    lexicon = ["".join(chance.choices("etaoinshrdlucm", k=chance.randint(2, 9))) for _ in range(300)]
    return [" ".join(chance.choices(lexicon, k=chance.randint(words // 2, words * 3 // 2))) for _ in range(count)]


def record_lines(texts: Sequence[str], sources: Sequence[str] = ("A",)) -> bytes:
    """Records in the Pile's layout, the sources in turn."""
    records = [
        {"text": text, "meta": {"pile_set_name": sources[number % len(sources)]}} for number, text in enumerate(texts)
    ]
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)
