"""Documents from a folder of text files, one document a file."""

from __future__ import annotations

import hashlib
import os
import stat
import sysconfig
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO

from pipeline.console import console
from pipeline.errors import UserError, WorldError
from pipeline.recipe_tokenize import TextFolderSource
from tokenization.documents import Document, Item, Rejection, Slice, SliceEnd, falls_into_validation, printable
from tokenization.sources.long_lines import LONGEST_LINE_BYTES
from tokenization.sources.utf8_text import LONG_TEXT_BYTES, Utf8Text

LONGEST_FILE_BYTES = LONGEST_LINE_BYTES
HASH_BLOCK_BYTES = 1 << 20

_File = tuple[str, int, int]
"""Path below the folder, bytes, time of modification in nanoseconds."""


class TextFolderReader:
    """Reads the files of a folder in a seeded order that depends on their paths below it alone.

    The files that lie in the folder are its documents: symbolic links, to folders or to files, are not followed, so
    that none leaves the folder, none loops and no document comes twice. With `max_bytes`, files are taken in the
    seeded order until their sizes reach it; the file that reaches it is still taken whole.

    A slice is a stretch of that order. A folder may hold millions of files, so a slice's hash is the SHA-256 over one
    line "SHA256-OF-THE-FILE  PATH-BELOW-THE-FOLDER" a file in reading order (`sha256sum`'s own format).
    """

    validation_files: tuple[Path, ...] = ()

    def __init__(self, source: TextFolderSource, seed: int) -> None:
        """Raises `UserError` where the folder is missing or the patterns leave no file of it."""
        self._source = source
        self._seed = seed
        self.name = source.name
        stdlib = sysconfig.get_path("stdlib")
        self._folder = Path(source.path.replace("{python_stdlib}", stdlib)).expanduser().absolute()
        if not self._folder.is_dir():
            raise UserError(f"{self._folder}: no such folder")
        files, links = self._find()
        if not files:
            excluded = f" without {', '.join(source.exclude)}" if source.exclude else ""
            linked = f" ({links} symbolic links are not followed)" if links else ""
            raise UserError(f"{self._folder}: no file matches {', '.join(source.include)}{excluded}{linked}")
        if links:
            console.print(f"{self._folder}: {links} symbolic links are not followed", markup=False)
        self._files = self._take(files)
        self.text_bytes = sum(size for _, size, _ in self._files)

    @property
    def train_files(self) -> list[Path]:
        return [self._folder / name for name, _, _ in self._files]

    def slices(self, part_bytes: int) -> list[Slice]:
        cut: list[Slice] = []
        first, size = 0, 0
        for number, (_, file_bytes, _) in enumerate(self._files, start=1):
            size += file_bytes
            if size >= part_bytes or number == len(self._files):
                cut.append(self._slice(first, number, size))
                first, size = number, 0
        return cut

    def _slice(self, start: int, end: int, size: int) -> Slice:
        return Slice(printable(str(self._folder)), start, end, size, _identity(self._files[start:end]), "train")

    def read(self, piece: Slice, advance: Callable[[int], object]) -> Iterator[Item]:
        self._check_unchanged(piece)
        combined = hashlib.sha256()
        total = 0
        for name, _, _ in self._files[piece.start : piece.end]:
            path = self._folder / name
            try:
                with open(path, "rb") as file:
                    file_bytes = os.fstat(file.fileno()).st_size
                    content = file.read() if file_bytes <= LONGEST_FILE_BYTES else None
                    digest = _sha256(file) if content is None else hashlib.sha256(content).hexdigest()
            except OSError as error:
                raise WorldError(f"{path} cannot be read: {error.strerror}") from error
            # Names come from the disk and may not be UTF-8; fsencode gives back the bytes that stand there.
            combined.update(digest.encode() + b"  " + os.fsencode(name) + b"\n")
            total += file_bytes
            if content is None:
                detail = f"{file_bytes} bytes, more than {LONGEST_FILE_BYTES}"
                yield Rejection(printable(str(path)), None, "too_long", detail)
            else:
                yield self._document(name, path, content)
            advance(file_bytes)
        # Whatever was written into the files meanwhile may be in the documents and not in the hash, or the reverse.
        self._check_unchanged(piece)
        yield SliceEnd(0, total, combined.hexdigest())

    def _check_unchanged(self, piece: Slice) -> None:
        """Raises `WorldError` where the slice's files are not those that it was cut of."""
        now: list[_File] = []
        for name, _, _ in self._files[piece.start : piece.end]:
            path = self._folder / name
            try:
                status = os.lstat(path)
            except OSError as error:
                raise WorldError(f"{path} cannot be read: {error.strerror}") from error
            now.append((name, status.st_size, status.st_mtime_ns))
        if _identity(now) != piece.identity:
            raise WorldError(f"{self._folder} has changed since the work on it was planned: start again")

    def _document(self, name: str, path: Path, content: bytes) -> Document | Rejection:
        shown = printable(str(path))
        try:
            text = content.decode("utf-8") if len(content) <= LONG_TEXT_BYTES else Utf8Text(content)
        except UnicodeDecodeError as error:
            return Rejection(shown, None, "not_utf8", str(error))
        in_validation = falls_into_validation(
            self._seed, self._source.name, printable(name), self._source.validation_share
        )
        split = "validation" if in_validation else "train"
        return Document(text, len(content), self._source.name, split, shown, None)

    def _find(self) -> tuple[list[_File], int]:
        """All matching files, and how many links were passed over."""
        found: list[_File] = []
        links = 0

        def unreadable(error: OSError) -> None:
            raise WorldError(f"{error.filename} cannot be read: {error.strerror}") from error

        for here, folders, files in os.walk(self._folder, onerror=unreadable):
            below = os.path.relpath(here, self._folder)
            prefix = "" if below == os.curdir else below + "/"
            # Not entering what is excluded whole saves most of the walk where, say, site-packages lies inside.
            folders[:] = [name for name in folders if not self._excluded_whole(prefix + name)]
            links += sum(os.path.islink(os.path.join(here, name)) for name in folders)
            for name in files:
                if not self._wanted(prefix + name):
                    continue
                status = os.lstat(os.path.join(here, name))
                if stat.S_ISREG(status.st_mode):
                    found.append((prefix + name, status.st_size, status.st_mtime_ns))
                links += stat.S_ISLNK(status.st_mode)
        return found, links

    def _wanted(self, name: str) -> bool:
        included = any(_matches(name, pattern) for pattern in self._source.include)
        return included and not any(_matches(name, pattern) for pattern in self._source.exclude)

    def _excluded_whole(self, folder: str) -> bool:
        whole = [pattern.removesuffix("/**") for pattern in self._source.exclude if pattern.endswith("/**")]
        return any(_matches(folder, pattern) for pattern in whole)

    def _take(self, files: list[_File]) -> list[_File]:
        """The seeded order of `files`, cut where the sizes reach `max_bytes`."""

        def place(file: _File) -> tuple[bytes, str]:
            key = f"{self._seed}\0{self._source.name}\0".encode() + os.fsencode(file[0])
            return hashlib.blake2b(key, digest_size=16).digest(), file[0]

        taken: list[_File] = []
        total = 0
        for file in sorted(files, key=place):
            if self._source.max_bytes != "all" and total >= self._source.max_bytes:
                break
            taken.append(file)
            total += file[1]
        return taken


def _identity(files: list[_File]) -> str:
    digest = hashlib.sha256()
    for name, file_bytes, modified in files:
        digest.update(f"{file_bytes} {modified} ".encode() + os.fsencode(name) + b"\0")
    return digest.hexdigest()


def _sha256(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := file.read(HASH_BLOCK_BYTES):
        digest.update(block)
    return digest.hexdigest()


def _matches(name: str, pattern: str) -> bool:
    """Whether a path below the folder fits a glob pattern, "**" standing for any number of folders.

    pathlib's own matching of "**" differs between Python 3.10 and 3.13; a data set must not.
    """
    return _parts_match(name.split("/"), pattern.split("/"))


def _parts_match(parts: list[str], patterns: list[str]) -> bool:
    if not patterns:
        return not parts
    if patterns == ["**"]:
        return bool(parts)
    if patterns[0] == "**":
        return any(_parts_match(parts[start:], patterns[1:]) for start in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], patterns[0]) and _parts_match(parts[1:], patterns[1:])
