"""Documents from a folder of text files, one document a file."""

from __future__ import annotations

import hashlib
import os
import stat
import sysconfig
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from pipeline.console import console
from pipeline.data.manifest import InputEntry
from pipeline.errors import UserError, WorldError
from pipeline.recipe import TextFolderSource
from tokenization.documents import Document, Item, Rejection, falls_into_validation, printable


class TextFolderReader:
    """Reads the files of a folder in a seeded order that depends on their paths below it alone.

    The files that lie in the folder are its documents: symbolic links, to folders or to files, are not followed, so
    that none leaves the folder, none loops and no document comes twice. With `max_bytes`, files are taken in the
    seeded order until their sizes reach it; the file that reaches it is still taken whole.

    A folder may hold millions of files, so it gets one `InputEntry`: the sum of the sizes, and the SHA-256 over one
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
        self._names, self.total_bytes = self._take(files)

    @property
    def train_files(self) -> list[Path]:
        return [self._folder / name for name in self._names]

    def read(self, advance: Callable[[int], object]) -> Iterator[Item]:
        combined = hashlib.sha256()
        total = 0
        for name in self._names:
            path = self._folder / name
            try:
                content = path.read_bytes()
            except OSError as error:
                raise WorldError(f"{path} cannot be read: {error.strerror}") from error
            # Names come from the disk and may not be UTF-8; fsencode gives back the bytes that stand there.
            combined.update(hashlib.sha256(content).hexdigest().encode() + b"  " + os.fsencode(name) + b"\n")
            total += len(content)
            advance(len(content))
            yield self._document(name, path, content)
        yield InputEntry(path=printable(str(self._folder)), bytes=total, sha256=combined.hexdigest())

    def _document(self, name: str, path: Path, content: bytes) -> Document | Rejection:
        shown = printable(str(path))
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            return Rejection(shown, None, "not_utf8", str(error))
        in_validation = falls_into_validation(
            self._seed, self._source.name, printable(name), self._source.validation_share
        )
        split = "validation" if in_validation else "train"
        return Document(text, len(content), self._source.name, split, shown, None)

    def _find(self) -> tuple[list[tuple[str, int]], int]:
        """All matching files as (path below the folder, bytes), and how many links were passed over."""
        found: list[tuple[str, int]] = []
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
                    found.append((prefix + name, status.st_size))
                links += stat.S_ISLNK(status.st_mode)
        return found, links

    def _wanted(self, name: str) -> bool:
        included = any(_matches(name, pattern) for pattern in self._source.include)
        return included and not any(_matches(name, pattern) for pattern in self._source.exclude)

    def _excluded_whole(self, folder: str) -> bool:
        whole = [pattern.removesuffix("/**") for pattern in self._source.exclude if pattern.endswith("/**")]
        return any(_matches(folder, pattern) for pattern in whole)

    def _take(self, files: list[tuple[str, int]]) -> tuple[list[str], int]:
        """The seeded order of `files`, cut where the sizes reach `max_bytes`; and the sum of the sizes taken."""

        def place(file: tuple[str, int]) -> tuple[bytes, str]:
            key = f"{self._seed}\0{self._source.name}\0".encode() + os.fsencode(file[0])
            return hashlib.blake2b(key, digest_size=16).digest(), file[0]

        names: list[str] = []
        total = 0
        for name, size in sorted(files, key=place):
            if self._source.max_bytes != "all" and total >= self._source.max_bytes:
                break
            names.append(name)
            total += size
        return names, total


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
