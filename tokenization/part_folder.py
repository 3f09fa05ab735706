"""Where parts lie until they are joined: shards/parts/, with a marker a part that says what it was made from.

plan.json            keys of all parts
00012/               shards of full chunks, tails, refused records; part.json last
00012.hashes     what a scan for duplicates found; 00012.scan.json last
00012.lock           held by the process that makes the part
"""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.console import console
from pipeline.data.manifest import MANIFEST_NAME, InputEntry, SplitEntry
from pipeline.durable import write_text
from pipeline.errors import WorldError
from tokenization.packing import Pieces, Tail

PARTS = "parts"
DONE = "part.json"
JOINED = "joined.json"
REJECTED_NAME = "rejected.jsonl"
SECONDS_FOR_A_DYING_PROCESS = 10.0
AS_LONG_AS_IT_TAKES = float("inf")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SliceResult(_Model):
    """What reading a slice told."""

    input: InputEntry | None
    """None where a later slice of the same file tells."""
    records: int
    """Records in the slice."""


class SplitResult(_Model):
    """What a part gave to one split."""

    entry: SplitEntry
    """Documents and tokens, the tail's too; shards and rows without it."""
    tail: dict[str, list]
    """`Pieces` of the tail, as columns."""
    tail_sha256: str


class PartResult(_Model):
    """part.json."""

    key: str
    """Hash of what the part was made from."""
    slices: list[SliceResult]
    splits: dict[str, SplitResult]
    rejected: dict[str, int]
    """Refused records by reason."""
    documents: dict[str, int]
    """Documents of the source by split, before weights."""
    tokens: dict[str, int]
    """Their tokens, end-of-document marks included."""


class ScanResult(_Model):
    """NUMBER.scan.json."""

    key: str
    documents: int


class PartsFolder:
    """Paths and markers of the parts of one shards folder."""

    def __init__(self, shards: Path) -> None:
        self.path = shards / PARTS

    @property
    def slow_file(self) -> Path:
        """Says why the fast encoding is not to be used, where it was found to differ."""
        return self.path / "encode-with-tokenizers.txt"

    def part(self, number: int) -> Path:
        return self.path / f"{number:05d}"

    def hashes(self, number: int) -> Path:
        return self.path / f"{number:05d}.hashes"

    def result(self, number: int, key: str) -> PartResult | None:
        """What a finished part gave; None where it is not finished, or was made from something else."""
        try:
            result = PartResult.model_validate_json((self.part(number) / DONE).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None
        return result if result.key == key else None

    def scanned(self, number: int, key: str) -> bool:
        """Whether the part's documents have been scanned for duplicates."""
        try:
            content = (self.path / f"{number:05d}.scan.json").read_bytes()
            return ScanResult.model_validate_json(content).key == key and self.hashes(number).is_file()
        except (FileNotFoundError, ValidationError):
            return False

    @property
    def over(self) -> bool:
        """Whether the parts have been joined, or are being joined: from then on none is made."""
        return (self.path / JOINED).exists() or (self.path.parent / MANIFEST_NAME).exists()

    def begin(self, number: int) -> Path:
        """An empty folder for the part; what an unfinished attempt left is removed."""
        folder = self.part(number)
        if folder.exists():
            self.remove(folder)
        folder.mkdir(parents=True)
        return folder

    @staticmethod
    def remove(folder: Path) -> None:
        (folder / DONE).unlink(missing_ok=True)  # first: without it the rest is nothing
        shutil.rmtree(folder)

    def finish(self, number: int, result: PartResult) -> None:
        """Mark the part as done; all its files are on disk."""
        write_text(self.part(number) / DONE, result.model_dump_json() + "\n")

    def begin_scan(self, number: int) -> Path:
        """Where the hashes go; an earlier scan is none from now on."""
        (self.path / f"{number:05d}.scan.json").unlink(missing_ok=True)
        return self.hashes(number)

    def finish_scan(self, number: int, result: ScanResult) -> None:
        write_text(self.path / f"{number:05d}.scan.json", result.model_dump_json() + "\n")

    def tail(self, number: int, key: str, result: SplitResult) -> Tail:
        """The tail of a split in a finished part; `WorldError` where it is damaged."""
        path = self.tail_file(number, key)
        try:
            tokens = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise WorldError(
                f"{path} cannot be read ({error}): remove {path.parent} to make that part again"
            ) from error
        return Tail(tokens, Pieces(**result.tail))

    def tail_file(self, number: int, key: str) -> Path:
        return self.part(number) / f"{key}.tail.npy"

    @contextmanager
    def lock(
        self, name: str, what: str, *, shared: bool = False, seconds: float = SECONDS_FOR_A_DYING_PROCESS
    ) -> Iterator[IO[str]]:
        """Hold parts/NAME.lock, alone or with others that share it; a killed process holds none.

        `WorldError` where another process has not given it back after `seconds`: as long as processes of a run that
        was killed just now may take to die.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / f"{name}.lock", "w") as file:
            if not locked(file, shared=shared, seconds=seconds, what=what):
                raise WorldError(
                    f"{what} is being made by another process (it holds {file.name}): wait for it, "
                    "then the same command continues"
                )
            yield file


def locked(file: IO[str], *, shared: bool, seconds: float, what: str) -> bool:
    """Whether the lock was had within `seconds`; also changes one that is held. Says when it has to wait for long."""
    began = time.monotonic()
    told = False
    while True:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            waited = time.monotonic() - began
            if waited > seconds:
                return False
            if waited > SECONDS_FOR_A_DYING_PROCESS and not told:
                told = True
                console.print(f"waiting for another process to be done with {what}", markup=False)
            time.sleep(0.1)
        except OSError as error:
            raise WorldError(
                f"{file.name} cannot be locked ({error.strerror}): the file system of the shards needs flock "
                "(Lustre: mounted with -o flock)"
            ) from error
