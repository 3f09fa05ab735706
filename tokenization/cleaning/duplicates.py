"""Exact duplicates over parts that are worked on in different processes and at different times.

Which of two equal documents is the first one depends on parts that another process may be at, so it is settled before
any part is made: each part is scanned once (`write_scan`), the hashes of its documents go to a file, sorted; and from
these files alone any process can tell which documents of its part came before (`duplicates_in`). 128 bits are enough
to take equal hashes for equal texts: among ten billion documents the chance of one mistake is below 10^-18.

A scan file: eight bytes that say what it is, the number of documents as uint64, then runs of `RUN_DOCUMENTS` documents
(the last one shorter), each sorted by hash and kept as three columns of uint64: first and second half of the hash,
number of the document in its part. Little-endian. Runs bound the memory of both steps, however large a part is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.durable import whole_file
from pipeline.errors import WorldError
from tokenization.documents import Document, TokenizedDocument, pieces_of

RUN_DOCUMENTS = 1 << 21
COLUMNS = 3
HEADER_BYTES = 16
_MAGIC = b"docscan1"
_HASH_BYTES = 16
_IDS_AT_ONCE = 1 << 20


def text_hash(document: Document | TokenizedDocument) -> bytes:
    """128-bit BLAKE2b of the text in UTF-8; of tokens, of the ids as little-endian uint32, whatever their type is.

    A text and tokens are never equal, even where the tokens are the text's.
    """
    if isinstance(document, TokenizedDocument):
        digest = hashlib.blake2b(digest_size=_HASH_BYTES, person=b"tokens")
        for start in range(0, len(document.ids), _IDS_AT_ONCE):
            digest.update(document.ids[start : start + _IDS_AT_ONCE].astype("<u4").tobytes())
    else:
        digest = hashlib.blake2b(digest_size=_HASH_BYTES)
        for piece in pieces_of(document.text):
            digest.update(piece.encode())
    return digest.digest()


def write_scan(
    path: Path, documents: Iterable[Document | TokenizedDocument], run_documents: int = RUN_DOCUMENTS
) -> int:
    """Write the scan file of a part's documents, whole or not at all; returns how many there are.

    They are numbered from 0 in the order they come in: what is no document has no number.
    """
    count = 0
    hashes = bytearray()
    with whole_file(path) as file:
        file.write(_MAGIC + count.to_bytes(HEADER_BYTES - len(_MAGIC), "little"))
        for document in documents:
            hashes += text_hash(document)
            count += 1
            if count % run_documents == 0:
                file.write(_sorted_run(hashes, count))
                hashes.clear()
        file.write(_sorted_run(hashes, count))
        file.seek(len(_MAGIC))
        file.write(count.to_bytes(HEADER_BYTES - len(_MAGIC), "little"))
    return count


def duplicates_in(part: int, scans: Sequence[Path], run_documents: int = RUN_DOCUMENTS) -> np.ndarray:
    """The documents of `part` that equal an earlier one of it or of an earlier part: sorted int64 numbers in the part.

    `scans` are all parts' scan files in order; a part comes before those behind it, so files of a given validation set
    stand first. Only those up to `part` are read. `run_documents` is what the files were written with.

    Raises `WorldError` naming a scan file that is missing or damaged.
    """
    found: list[np.ndarray] = [np.empty(0, np.int64)]
    own = list(_runs(scans[part], run_documents))
    for number, run in enumerate(own):
        repeated = np.zeros(len(run.first), bool)
        # Sorted by hash and then by number: all but the first of equal ones are repeated.
        repeated[1:] = (run.first[1:] == run.first[:-1]) & (run.second[1:] == run.second[:-1])
        for path in scans[:part]:
            for earlier in _runs(path, run_documents):
                repeated |= occurs_in(run, earlier)
        for earlier in own[:number]:
            repeated |= occurs_in(run, earlier)
        found.append(run.number[repeated].astype(np.int64))
    return np.sort(np.concatenate(found))


class Run(NamedTuple):
    """Documents sorted by hash: arrays of uint64, [documents] each."""

    first: np.ndarray
    second: np.ndarray
    number: np.ndarray


def occurs_in(run: Run, other: Run) -> np.ndarray:
    """For each document of `run`, whether its hash is in `other`: bool [documents]."""
    found = np.zeros(len(run.first), bool)
    if not len(run.first) or not len(other.first):
        return found
    # Both are sorted already, and merging is what the stable sort does then; a search for each takes twice as long.
    merged = np.sort(np.concatenate([run.first, other.first]), kind="stable")
    shared = np.unique(merged[1:][merged[1:] == merged[:-1]])
    if not len(shared):
        return found
    # What is left is little: documents whose first half is in both, and a few that `run` has twice.
    candidates = np.flatnonzero(np.isin(run.first, shared))
    place = np.searchsorted(other.first, run.first[candidates], side="left")
    while len(candidates):
        inside = place < len(other.first)
        candidates, place = candidates[inside], place[inside]
        alike = other.first[place] == run.first[candidates]
        candidates, place = candidates[alike], place[alike]
        equal = other.second[place] == run.second[candidates]
        found[candidates[equal]] = True
        # Different texts may share the first half; then the next of those in `other` is looked at.
        candidates, place = candidates[~equal], place[~equal] + 1
    return found


def _sorted_run(hashes: bytearray, count: int) -> bytes:
    """The columns of the last documents, `count` of the part being known by then."""
    halves = np.frombuffer(bytes(hashes), "<u8").reshape(-1, 2)
    numbers = np.arange(count - len(halves), count, dtype="<u8")
    order = np.lexsort((numbers, halves[:, 1], halves[:, 0]))
    return np.stack([halves[order, 0], halves[order, 1], numbers[order]]).tobytes()


def _runs(path: Path, run_documents: int) -> Iterator[Run]:
    """The runs of a scan file, mapped into memory."""
    try:
        with open(path, "rb") as file:
            head = file.read(HEADER_BYTES)
        size = path.stat().st_size
        count = int.from_bytes(head[len(_MAGIC) :], "little")
        if not head.startswith(_MAGIC) or size != HEADER_BYTES + COLUMNS * 8 * count:
            raise WorldError(f"{path} is damaged: remove it, and the same command makes it anew")
        if count == 0:
            return
        words = np.memmap(path, "<u8", "r", offset=HEADER_BYTES)
    except OSError as error:
        raise WorldError(f"{path} cannot be read: {error.strerror}") from error
    for start in range(0, count, run_documents):
        length = min(run_documents, count - start)
        yield Run(*words[COLUMNS * start : COLUMNS * (start + length)].reshape(COLUMNS, length))
