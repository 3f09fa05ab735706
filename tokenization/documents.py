"""What a source gives: documents, refused records, and what was read.

A reader is a plain iterator over these in reading order and keeps no state between two passes: an input's size and
hash come as an item of their own once it has been read to its end. How each kind of source is read is in
`tokenization.json_lines` and `tokenization.text_folder`; `tokenization.sources` opens those of a recipe.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from pipeline.data.manifest import InputEntry

Split = Literal["train", "validation"]
Reason = Literal["malformed_json", "missing_text", "text_not_a_string", "not_utf8", "empty_document"]


@dataclass(frozen=True)
class Document:
    """One text, with its place for whoever has to refuse it later."""

    text: str
    text_bytes: int
    """Length of `text` in UTF-8."""
    source: str
    """Name under which it is counted and evaluated."""
    split: Split
    file: str
    line: int | None
    """1-based line in `file`; None where the file is the document."""


@dataclass(frozen=True)
class Rejection:
    """A record that is no document: one line of rejected.jsonl."""

    file: str
    line: int | None
    reason: Reason
    detail: str = ""


Item = Document | Rejection | InputEntry


class SourceReader(Protocol):
    """One source of the recipe, ready to be read; its inputs exist and can be opened."""

    @property
    def name(self) -> str:
        """The source's name in messages."""
        ...

    @property
    def total_bytes(self) -> int:
        """Bytes on disk that a whole pass reads."""
        ...

    @property
    def train_files(self) -> Sequence[Path]: ...

    @property
    def validation_files(self) -> Sequence[Path]:
        """Files of a given validation set; empty where a share of the training documents is cut."""
        ...

    def read(self, advance: Callable[[int], object]) -> Iterator[Item]:
        """One pass; `advance` is told how many bytes of the inputs were read since the last call.

        Raises `WorldError` naming the file where an input is unreadable, corrupt or cut short.
        """
        ...


def falls_into_validation(seed: int, source: str, number: str, share: float) -> bool:
    """Whether a document belongs to the seeded validation share.

    A pure function of the seed, the source's name and the document's number in it, so that the cut is the same however
    the work is divided, and adding a source moves no document of another.
    """
    digest = hashlib.blake2b(f"{seed}\0{source}\0{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2.0**64


def printable(name: str) -> str:
    """A file name as UTF-8 text, with a replacement where the disk's bytes are none; JSON takes nothing else."""
    return os.fsencode(name).decode("utf-8", "replace")
