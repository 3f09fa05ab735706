"""One shard against its index and the manifest, read once from its first byte to its last.

The tar is walked by its own headers, not by the index, and hashed on the way, so that both tell what they know of the
same bytes. No more than one chunk is in memory.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
import threading
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from pipeline.data.index import INDEX_VERSION, META_EXTENSION, TOKENS_EXTENSION
from pipeline.data.manifest import ShardEntry
from tokenization.inspection.stored_chunks import read_header, read_pieces

BLOCK_BYTES = 1 << 20
# Extension, offset in the tar, size, name of the member.
IndexedMember = tuple[str, int, int, str]


@dataclass(frozen=True)
class Expected:
    """What the manifest says of every chunk of a split."""

    row_tokens: int
    dtype: np.dtype
    vocab_size: int
    end_of_document_id: int
    padding_tokens: int
    """Padding that the shard's last chunk should have: 0 unless it is the split's last."""


@dataclass
class ShardFindings:
    """What a shard holds, and what is wrong with it."""

    problems: list[str] = field(default_factory=list)
    """One line each, the file's name first."""
    whole: bool = True
    """Whether every chunk could be counted."""
    chunks: int = 0
    rows: int = 0
    documents: Counter[str] = field(default_factory=Counter)
    """Documents by source; each is counted where it ends."""
    tokens: Counter[str] = field(default_factory=Counter)
    text_bytes: Counter[str] = field(default_factory=Counter)
    unfinished: Counter[str] = field(default_factory=Counter)
    """Pieces at the end of a chunk that go on in another chunk, by source."""
    continued: Counter[str] = field(default_factory=Counter)
    """Pieces that may be the continuation of such a one, by source."""
    keys: array[int] = field(default_factory=lambda: array("Q"))
    """64-bit hashes of the chunks' sample keys."""


def verify_shard(
    path: Path, entry: ShardEntry, expected: Expected, advance: Callable[[int], object], stop: threading.Event
) -> ShardFindings:
    """Read the shard at `path` whole; `advance` is told the bytes read. Ends early, with nothing said, after `stop`."""
    findings = ShardFindings()
    shard = _Verification(path, entry, expected, findings)
    indexed = shard.read_index()
    try:
        with open(path, "rb") as file:
            shard.walk(_HashedFile(file, advance, stop), indexed)
    except OSError as error:
        findings.problems.append(f"{path.name}: cannot be read: {error.strerror}")
        findings.whole = False
    return findings


class _Stopped(Exception):
    """Somebody else has asked for the end."""


class _BrokenTar(ValueError):
    """The walk from member to member cannot go on."""


class _HashedFile:
    """A file read in order, with its hash so far."""

    def __init__(self, file: IO[bytes], advance: Callable[[int], object], stop: threading.Event) -> None:
        self._file, self._advance, self._stop = file, advance, stop
        self._digest = hashlib.sha256()
        self.size = os.fstat(file.fileno()).st_size
        self.place = 0

    def read(self, size: int) -> bytes:
        """The next `size` bytes, or fewer at the end of the file."""
        if self._stop.is_set():
            raise _Stopped
        data = self._file.read(size)
        self._digest.update(data)
        self.place += len(data)
        self._advance(len(data))
        return data

    def rest(self) -> Iterator[bytes]:
        """What is left, in blocks."""
        while block := self.read(BLOCK_BYTES):
            yield block

    def sha256(self) -> str:
        return self._digest.hexdigest()


def _members(file: _HashedFile) -> Iterator[tuple[str, int, bytes]]:
    """Name, offset and content of each member of a tar; `_BrokenTar` where it is none to its end."""
    while True:
        at = file.place
        head = file.read(tarfile.BLOCKSIZE)
        if not any(head):
            break
        try:
            member = tarfile.TarInfo.frombuf(head, "utf-8", "backslashreplace")
        except tarfile.HeaderError as error:
            raise _BrokenTar(f"no tar header at byte {at} ({error})") from error
        if not member.isreg():
            raise _BrokenTar(f"{member.name!r} at byte {at} is no plain file")
        offset, padded = file.place, member.size + -member.size % tarfile.BLOCKSIZE
        if not 0 <= member.size <= padded <= file.size - offset:
            raise _BrokenTar(f"{member.name!r} at byte {at} says {member.size} bytes, {file.size - offset} are left")
        yield member.name, offset, file.read(padded)[: member.size]
    if len(head) < tarfile.BLOCKSIZE or len(second := file.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE or any(second):
        raise _BrokenTar(f"cut: the tar has no end mark at byte {at}")
    if any(any(block) for block in file.rest()):
        raise _BrokenTar(f"something stands behind the tar's end mark at byte {at}")


class _Verification:
    """The state of one shard's reading."""

    def __init__(self, path: Path, entry: ShardEntry, expected: Expected, findings: ShardFindings) -> None:
        self._path, self._entry, self._expected, self._findings = path, entry, expected, findings
        self._index_name = path.with_suffix(".idx").name

    def read_index(self) -> list[list[IndexedMember]] | None:
        """The members of each sample by the index; None where there is no index to compare with."""
        try:
            content = self._path.with_suffix(".idx").read_bytes()
        except OSError as error:
            self._index_problem(f"cannot be read: {error.strerror}")
            return None
        if hashlib.sha256(content).hexdigest() != self._entry.index_sha256:
            self._index_problem("its sha256 is not the manifest's")
        try:
            first, *lines = content.decode("utf-8").splitlines()
            if first != f"{INDEX_VERSION} {len(lines)}":
                raise ValueError(f"{first[:40]!r} stands above {len(lines)} samples")
            return [_indexed_members(line) for line in lines]
        except ValueError as error:
            self._index_problem(f"not a {INDEX_VERSION} index: {error}")
            return None

    def walk(self, file: _HashedFile, indexed: list[list[IndexedMember]] | None) -> None:
        """All samples of the tar, then what they come to."""
        try:
            try:
                self._samples(file, indexed)
            except _BrokenTar as error:
                self._problem(str(error))
                self._findings.whole = False
                for _ in file.rest():  # for the hash
                    pass
        except _Stopped:
            self._findings.whole = False
            return
        if file.size != self._entry.bytes:
            self._problem(f"{file.size} bytes, the manifest says {self._entry.bytes}")
        elif file.sha256() != self._entry.sha256:
            self._problem("its sha256 is not the manifest's")
        found = self._findings
        if indexed is not None and len(indexed) > found.chunks:
            self._index_problem(f"{len(indexed)} samples, the tar has {found.chunks}")
        if found.whole:
            for told, counted, wanted in (
                ("chunks", found.chunks, self._entry.chunks),
                ("rows", found.rows, self._entry.rows),
            ):
                if counted != wanted:
                    self._problem(f"{counted} {told}, the manifest says {wanted}")

    def _samples(self, file: _HashedFile, indexed: list[list[IndexedMember]] | None) -> None:
        members: list[tuple[str, int, bytes]] = []
        try:
            for member in _members(file):
                if members and _key(member[0]) != _key(members[0][0]):
                    self._sample(members, indexed)
                    members = []
                members.append(member)
        except _BrokenTar:
            if len(members) == 2:  # the last whole sample before the break
                self._sample(members, indexed)
            raise
        if members:
            self._sample(members, indexed)

    def _sample(self, members: list[tuple[str, int, bytes]], indexed: list[list[IndexedMember]] | None) -> None:
        number = self._findings.chunks
        key = _key(members[0][0])
        self._findings.chunks += 1
        self._findings.keys.append(int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big"))
        found = [(name[len(key) + 1 :], offset, len(content), name) for name, offset, content in members]
        if indexed is not None:
            if number >= len(indexed):
                self._index_problem(f"chunk {number} ({key}) is not in it")
            elif indexed[number] != found:
                told, there = (_told(entries) for entries in _differing(indexed[number], found))
                self._index_problem(f"chunk {number} ({key}): it says {told}, the tar has {there}")
        try:
            if [extension for extension, *_ in found] != [TOKENS_EXTENSION, META_EXTENSION]:
                raise ValueError(f"holds {_told(found)} instead of one {TOKENS_EXTENSION} and one {META_EXTENSION}")
            self._chunk(number, members[0][2], members[1][2])
        except ValueError as error:
            self._problem(f"chunk {number} ({key}): {error}")
            self._findings.whole = False

    def _chunk(self, number: int, npy: bytes, meta: bytes) -> None:
        """Count a chunk; `ValueError` where it cannot be counted."""
        expected, found = self._expected, self._findings
        header = read_header(npy)
        rows, columns = header.shape
        if header.dtype != expected.dtype or columns != expected.row_tokens:
            raise ValueError(
                f"the .npy holds {header.dtype} {list(header.shape)}, "
                f"the manifest says {expected.dtype} [rows, {expected.row_tokens}]"
            )
        if header.bytes + rows * columns * header.dtype.itemsize != len(npy):
            raise ValueError(f"the .npy's {list(header.shape)} does not fill its {len(npy)} bytes")
        tokens = np.frombuffer(npy, header.dtype, offset=header.bytes)
        found.rows += rows
        if tokens.max() >= expected.vocab_size:
            place = int(np.argmax(tokens >= expected.vocab_size))
            self._problem(
                f"chunk {number}: token {tokens[place]} at row {place // columns}, column {place % columns} "
                f"is not below the vocabulary of {expected.vocab_size}"
            )
        pieces = read_pieces(meta, tokens.size)
        wanted_padding = expected.padding_tokens if number == self._entry.chunks - 1 else 0
        if pieces.padding_tokens != wanted_padding:
            self._problem(f"chunk {number}: {pieces.padding_tokens} tokens of padding, it should have {wanted_padding}")
        ended = tokens[pieces.end - 1] == expected.end_of_document_id
        must_end = ended if pieces.padding_tokens else ended[:-1]
        if not must_end.all():
            piece = int(np.argmin(must_end))
            raise ValueError(
                f"the document of {pieces.sources[pieces.source[piece]]!r} that ends at token {pieces.end[piece] - 1} "
                "has no end-of-document mark there"
            )
        text = tokens[: tokens.size - pieces.padding_tokens]
        marks = np.flatnonzero(text == expected.end_of_document_id)
        if len(marks) != ended.sum():
            place = int(np.setdiff1d(marks, pieces.end - 1)[0])
            self._problem(f"chunk {number}: an end-of-document mark at token {place}, where its meta ends no document")
        padding = tokens[tokens.size - pieces.padding_tokens :]
        if np.any(padding != expected.end_of_document_id):
            self._problem(f"chunk {number}: its padding holds other tokens than end-of-document marks")
        lengths = pieces.end - pieces.start
        for place, source in enumerate(pieces.sources):
            its = pieces.source == place
            found.documents[source] += int(ended[its].sum())
            found.tokens[source] += int(lengths[its].sum())
            found.text_bytes[source] += int(pieces.bytes[its].sum())
            found.unfinished[source] += int((~ended[its]).sum())
            found.continued[source] += int((pieces.bytes[its] == 0).sum())

    def _problem(self, what: str) -> None:
        self._findings.problems.append(f"{self._path.name}: {what}")

    def _index_problem(self, what: str) -> None:
        self._findings.problems.append(f"{self._index_name}: {what}")


def _key(name: str) -> str:
    """A sample's key: the member's name up to its first dot, where WebDataset and DALI cut it."""
    return name.split(".", 1)[0]


def _indexed_members(line: str) -> list[IndexedMember]:
    fields = line.split(" ")
    if len(fields) % 4:
        raise ValueError(f"{line[:80]!r} is no list of extension, offset, size and name")
    members = zip(fields[0::4], fields[1::4], fields[2::4], fields[3::4], strict=True)
    return [(extension, int(offset), int(size), name) for extension, offset, size, name in members]


def _differing(one: list[IndexedMember], other: list[IndexedMember]) -> tuple[list[IndexedMember], list[IndexedMember]]:
    """What each of two lists has that the other does not have in the same place."""
    both = min(len(one), len(other))
    places = [place for place in range(both) if one[place] != other[place]]
    return [one[place] for place in places] + one[both:], [other[place] for place in places] + other[both:]


def _told(members: list[IndexedMember]) -> str:
    return ", ".join(f"{name} at {offset} of {size} bytes" for _, offset, size, name in members) or "nothing"
