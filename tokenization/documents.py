"""What a source gives: documents, refused records, and what was read.

A source's inputs are cut into slices that do not depend on who reads them; a reader gives a slice's items in order and
keeps no state between two slices, so that any process may read any of them. How each kind of source is read is in
`tokenization.sources`, whose `open_sources` opens those of a recipe.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

Split = Literal["train", "validation"]
Reason = Literal[
    "malformed_json",
    "missing_text",
    "text_not_a_string",
    "not_utf8",
    "empty_document",
    "line_too_long",
    "duplicate",
    "too_short",
    "too_long",
    "contaminated",
]


class LongText(Protocol):
    """A text too large to hold as one string."""

    def pieces(self) -> Iterator[str]:
        """The text in pieces of some megabytes, as often as asked; joined, they are the text."""
        ...


Text = str | LongText


def pieces_of(text: Text) -> Iterator[str]:
    """The strings that make up `text`: one, unless it is a `LongText`."""
    if isinstance(text, str):
        yield text
    else:
        yield from text.pieces()


@dataclass(frozen=True)
class Document:
    """One text, with its place for whoever has to refuse it later."""

    text: Text
    text_bytes: int
    """Length of `text` in UTF-8."""
    source: str
    """Name under which it is counted and evaluated."""
    split: Split
    file: str
    line: int | None
    """1-based record in the slice that it was read from; None where the file is the document."""


@dataclass(frozen=True)
class TokenizedDocument:
    """A document that is tokens already."""

    ids: np.ndarray
    """[tokens], unsigned, without the end-of-document mark; a view into a mapped file perhaps."""
    text_bytes: int
    source: str
    split: Split
    file: str
    line: int | None
    """1-based document in the slice that it was read from."""


@dataclass(frozen=True)
class Rejection:
    """A record that is no document: one line of rejected.jsonl."""

    file: str
    line: int | None
    """1-based record in the slice; in rejected.jsonl, in the file."""
    reason: Reason
    detail: str = ""


@dataclass(frozen=True)
class SliceEnd:
    """The last item of every slice."""

    records: int
    """Lines or records that the slice has, refused and blank ones included: where the next slice's numbers start."""
    bytes: int
    """Bytes of the input on disk that stand for this entry."""
    sha256: str | None
    """Hash of the whole input, given by its last slice; of a folder or data set, of this slice's share of it; None
    where a later slice of the same file tells."""


Item = Document | TokenizedDocument | Rejection | SliceEnd


@dataclass(frozen=True)
class Slice:
    """A stretch of one input: what the parts of the work are made of. JSON-able."""

    input: str
    """The file, folder or data set, for messages and for the manifest; printable."""
    start: int
    """First unit: a byte of the plain text, a file of a folder, a row, a token."""
    end: int | None
    """Behind the last unit; None: to the end."""
    size: int
    """About how many bytes of text it holds; parts are balanced by it, progress bars advance over it."""
    identity: str
    """Changes when the input does (size and modification time, or a hash of names): work done before is then redone."""
    split: Split


class SourceReader(Protocol):
    """One source of the recipe, ready to be read; its inputs exist and can be opened."""

    @property
    def name(self) -> str:
        """The source's name in messages."""
        ...

    @property
    def train_files(self) -> Sequence[Path]:
        """Files read for training; empty where they are not this machine's."""
        ...

    @property
    def validation_files(self) -> Sequence[Path]:
        """Files of a given validation set; empty where a share of the training documents is cut."""
        ...

    @property
    def text_bytes(self) -> int:
        """About how many bytes of text all inputs hold."""
        ...

    def slices(self, part_bytes: int) -> list[Slice]:
        """All inputs in reading order, training first, cut where they hold much more than `part_bytes` of text.

        A function of the inputs, the recipe and `part_bytes` alone.
        """
        ...

    def read(self, piece: Slice, advance: Callable[[int], object]) -> Iterator[Item]:
        """The items of one slice, a `SliceEnd` last; `advance` is told how many bytes of text were read since.

        Raises `WorldError` naming the file where an input is unreadable, corrupt or cut short.
        """
        ...


def utf8_bytes(text: str) -> int:
    """Length of `text` in UTF-8; `UnicodeEncodeError` where it holds half of a surrogate pair."""
    return len(text) if text.isascii() else len(text.encode("utf-8"))


def falls_into_validation(seed: int, source: str, number: str, share: float) -> bool:
    """Whether a document belongs to the seeded validation share.

    A pure function of the seed, the source's name and the document's place in it, so that the cut is the same however
    the work is divided, and adding a source moves no document of another.
    """
    digest = hashlib.blake2b(f"{seed}\0{source}\0{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2.0**64


def printable(name: str) -> str:
    """A file name as UTF-8 text, with a replacement where the disk's bytes are none; JSON takes nothing else."""
    return os.fsencode(name).decode("utf-8", "replace")
