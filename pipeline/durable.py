"""Files that appear whole or not at all, and the hashes that prove it.

Every stage writes through here: beside the final name, fsync, rename, fsync of the folder. A kill -9 at any moment
leaves either the old file or the new one under its name.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import IO, Any

PARTIAL_SUFFIX = ".partial"


@contextmanager
def whole_file(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open `path` for writing; it takes its name only when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    encoding = None if "b" in mode else "utf-8"
    try:
        with open(partial, mode, encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, whole or not at all."""
    with whole_file(path, "w") as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")


def write_text(path: Path, content: str) -> None:
    """Write `content` as UTF-8, whole or not at all."""
    with whole_file(path, "w") as file:
        file.write(content)


def write_new(path: Path, content: str) -> bool:
    """Write `content` as UTF-8 to a file that does not exist yet; whether it was this call that made it.

    Of several hosts one succeeds, on NFS too: a hard link is made by the server, and the file has its content from its
    first moment on.
    """
    mine = path.with_name(f".{uuid.uuid4().hex}")
    try:
        with open(mine, "x", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(mine, path)
        except FileExistsError:
            # NFS repeats a request whose answer was lost, and tells of its own success as of another's.
            if mine.stat().st_nlink != 2:
                return False
        fsync_folder(path.parent)
        return True
    finally:
        mine.unlink(missing_ok=True)


def append_line(file: FileIO, line: str) -> None:
    """Write `line`, which ends in a newline, in one piece to a file that was opened for appending without a buffer.

    Raises OSError naming the file when the disk refuses; the file may then end in the beginning of the line.
    """
    content = line.encode()
    try:
        if (file.write(content) or 0) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file.name)) from error


def fsync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_folder(path: Path) -> None:
    """Make renames inside `path` survive a power cut."""
    fsync_file(path)


def replace_folder(partial: Path, folder: Path) -> None:
    """Put `partial` in the place of `folder`, which may stand; a kill in between is for `repair_folder`."""
    old = _old(folder)
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    fsync_folder(folder.parent)
    if old.exists():
        shutil.rmtree(old)


def repair_folder(folder: Path) -> None:
    """Undo or finish a `replace_folder` that a kill cut in two."""
    old = _old(folder)
    if old.exists():
        if folder.exists():
            shutil.rmtree(old)
        else:
            os.replace(old, folder)


def _old(folder: Path) -> Path:
    return folder.with_name(folder.name + ".old")


def sha256_file(path: Path) -> str:
    """The file's SHA-256 as hexadecimal text."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_json(content: Any) -> str:
    """SHA-256 of `content` as canonical JSON: the same for any order of keys."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
