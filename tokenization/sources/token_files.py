"""Documents that are tokens already, so that an existing corpus needs no second tokenization.

Flat files (.npy, .bin, and .arrow: a data set of packed rows as `datasets` saves it) hold documents one behind the
other, each closed by the end-of-document token; they are cut at that token. Files with an index of Megatron's say
where documents lie; they too are cut at every end-of-document token, because Megatron's tools may have found the token
inside a text, and because rows that were packed and shuffled before carry several documents each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from pipeline.errors import UserError, WorldError
from pipeline.recipe_tokenize import TokenFilesSource
from tokenization.documents import (
    Item,
    Rejection,
    Slice,
    SliceEnd,
    Split,
    TokenizedDocument,
    falls_into_validation,
    printable,
)
from tokenization.sources.find_files import check_unchanged, file_identity, find_files
from tokenization.sources.megatron_index import MegatronIndex
from tokenization.sources.token_streams import TokenStream, map_bin, open_token_stream

SUFFIXES = (".npy", ".bin", ".arrow")
TEXT_BYTES_PER_TOKEN = 4
"""About what English gives; for the balance of the parts alone."""
HASH_BLOCK_BYTES = 1 << 20


class TokenFilesReader:
    """Reads the training files in sorted order, then the given validation files.

    A slice of a flat file is a range of tokens and owns the documents that start in it; a slice of a file with an
    index is a range of documents. The hash of a file with an index is that of the .bin and the .idx, one behind the
    other (`cat x.bin x.idx | sha256sum`).
    """

    def __init__(
        self,
        source: TokenFilesSource,
        seed: int,
        end_of_document_id: int,
        vocab_size: int,
        text_bytes_of: Callable[[np.ndarray], int],
    ) -> None:
        """`text_bytes_of(ids [tokens])` tells how long the text is in UTF-8.

        Raises `UserError` where a file or pattern finds nothing, a name has an unknown suffix or a file holds no
        tokens, `WorldError` where a file's size does not fit what it should hold.
        """
        self._source = source
        self._seed = seed
        self._end_id = end_of_document_id
        self._vocab_size = vocab_size
        self._text_bytes_of = text_bytes_of
        self.name = source.name
        self.train_files = find_files(source.train, SUFFIXES)
        self.validation_files = find_files(source.validation, SUFFIXES)
        self._places: dict[tuple[Split, str], tuple[int, Path]] = {}
        self._tokens: dict[Path, int] = {}
        for split, files in self._splits():
            for number, path in enumerate(files):
                if self._places.setdefault((split, printable(str(path))), (number, path)) != (number, path):
                    raise UserError(f"{printable(str(path))}: two files share this name: rename one")
                index = _index_of(path)
                self._tokens[path] = index.tokens if index else len(self._stream(path))

    @property
    def text_bytes(self) -> int:
        return TEXT_BYTES_PER_TOKEN * sum(self._tokens[path] for _, files in self._splits() for path in files)

    def slices(self, part_bytes: int) -> list[Slice]:
        slices: list[Slice] = []
        for split, files in self._splits():
            for path in files:
                tokens = self._tokens[path]
                wanted = max(1, min(tokens, -(-tokens * TEXT_BYTES_PER_TOKEN // part_bytes)))
                index = _index_of(path)
                cuts = index.cuts(wanted) if index else [number * tokens // wanted for number in range(wanted)]
                identity = file_identity(*_files_of(path))
                for start, end in zip(cuts, [*cuts[1:], None], strict=True):
                    size = tokens * TEXT_BYTES_PER_TOKEN // len(cuts)
                    slices.append(Slice(printable(str(path)), start, end, size, identity, split))
        return slices

    def read(self, piece: Slice, advance: Callable[[int], object]) -> Iterator[Item]:
        file_number, path = self._places[piece.split, piece.input]
        files = _files_of(path)
        check_unchanged(piece.identity, *files)
        index = _index_of(path)
        if index:
            documents = self._of_index(index, path, piece.start, index.documents if piece.end is None else piece.end)
        else:
            stream = self._stream(path)
            documents = self._of_stream(stream, path, piece.start, len(stream) if piece.end is None else piece.end)
        line = 0
        for line, (place, ids) in enumerate(documents, start=1):
            if not len(ids):
                yield Rejection(piece.input, line, "empty_document", f"no token at {place}")
                continue
            text_bytes = self._text_bytes_of(ids)
            split = piece.split
            if split == "train" and falls_into_validation(
                self._seed, self.name, f"{file_number}:{place}", self._source.validation_share
            ):
                split = "validation"
            yield TokenizedDocument(ids, text_bytes, self.name, split, piece.input, line)
            advance(text_bytes)
        if piece.end is not None:
            yield SliceEnd(records=line, bytes=0, sha256=None)
            return
        digest = _hash(files)
        # Whatever was written into the files meanwhile may be in the documents and not in the hash, or the reverse.
        check_unchanged(piece.identity, *files)
        yield SliceEnd(records=line, bytes=sum(file.stat().st_size for file in files), sha256=digest)

    def _of_stream(self, stream: TokenStream, path: Path, start: int, end: int) -> Iterator[tuple[int, np.ndarray]]:
        """(first token, ids) of the documents that start from `start` to before `end`."""
        if start > 0 and int(stream.take(start - 1, start)[0]) != self._end_id:
            # The document that runs into this slice is another slice's. It may run through all of this one.
            mark = next(self._marks(stream, path, start, end), None)
            start = end if mark is None else mark + 1
        marks = self._marks(stream, path, start, len(stream))
        while start < end:
            mark = next(marks, len(stream))
            yield start, stream.take(start, mark)
            start = mark + 1

    def _marks(self, stream: TokenStream, path: Path, start: int, stop: int) -> Iterator[int]:
        """Positions of the end-of-document token; every id that is passed over is checked."""
        for first, ids in stream.blocks(start, stop):
            self._check_vocabulary(ids, path, first)
            yield from (np.flatnonzero(ids == self._end_id) + first).tolist()

    def _of_index(self, index: MegatronIndex, path: Path, start: int, end: int) -> Iterator[tuple[int, np.ndarray]]:
        """(first token in the .bin, ids) of the texts in the documents from `start` to before `end`."""
        stream = map_bin(path, index.dtype)
        for spans in index.spans(start, end):
            for first, length in spans:
                for position, ids in stream.blocks(first, first + length):
                    self._check_vocabulary(ids, path, position)
            pieces = [stream.take(first, first + length) for first, length in spans]
            place = spans[0][0] if spans else 0
            ids = pieces[0] if len(pieces) == 1 else np.concatenate([np.empty(0, np.uint8), *pieces])
            starts = [0, *(np.flatnonzero(ids == self._end_id) + 1).tolist()]
            if len(starts) > 1 and starts[-1] == len(ids):
                starts.pop()
                stops = [*(later - 1 for later in starts[1:]), len(ids) - 1]
            else:
                stops = [*(later - 1 for later in starts[1:]), len(ids)]
            for low, high in zip(starts, stops, strict=True):
                yield place + low, ids[low:high]

    def _check_vocabulary(self, ids: np.ndarray, path: Path, first: int) -> None:
        if len(ids) and int(ids.max()) >= self._vocab_size:
            place = int(np.argmax(ids >= self._vocab_size))
            raise WorldError(
                f"{path}: token {first + place:,} is {int(ids[place])}, but the vocabulary has {self._vocab_size:,} "
                "entries: was the file made with another tokenizer?"
            )

    def _stream(self, path: Path) -> TokenStream:
        return open_token_stream(path, self._source.token_dtype, self._source.ids_field)

    def _splits(self) -> list[tuple[Split, list[Path]]]:
        return [("train", self.train_files), ("validation", self.validation_files)]


def _index_of(path: Path) -> MegatronIndex | None:
    return MegatronIndex(path) if len(_files_of(path)) > 1 else None


def _files_of(path: Path) -> list[Path]:
    """The file, and its index where it has one."""
    index = path.with_suffix(".idx")
    return [path, index] if path.suffix == ".bin" and index.is_file() else [path]


def _hash(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        try:
            with open(path, "rb") as file:
                while block := file.read(HASH_BLOCK_BYTES):
                    digest.update(block)
        except OSError as error:
            raise WorldError(f"{path} cannot be read: {error.strerror}") from error
    return digest.hexdigest()
