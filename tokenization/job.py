"""One step of the work, a part to be made or scanned, and what it takes; done in whatever process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.durable import sha256_file
from pipeline.errors import WorldError
from pipeline.recipe import Recipe
from tokenization.encoding.tokenizer import TOKENIZER_FILE, DocumentTokenizer
from tokenization.finished_shards import TOKENIZER_FOLDER
from tokenization.part import Progress, Tools, make_part, scan_part
from tokenization.part_folder import PartsFolder
from tokenization.plan import Part

REPORT_BYTES = 1 << 20
"""How it goes is told after so much text."""


@dataclass(frozen=True)
class Job:
    """One part to be made, or scanned for duplicates."""

    part: Part
    key: str
    scan: bool
    """Only look for duplicates."""
    place: int = 0
    """Where the part stands in `Setting.order`."""


@dataclass(frozen=True)
class Setting:
    """What a worker opens. It is handed over to other processes, with all that took time to prepare."""

    recipe: Recipe
    shards: Path
    tokenizer: DocumentTokenizer
    order: tuple[int, ...]
    """Part numbers in the order in which the first of equal documents counts; empty where duplicates stay."""

    def open(self) -> Tools:
        path = self.shards / TOKENIZER_FOLDER / TOKENIZER_FILE
        if sha256_file(path) != self.tokenizer.entry.sha256:
            raise WorldError(f"{path} was replaced while its shards were being made: start again")
        return Tools.open(self.recipe, self.shards, self.tokenizer)


def do_job(setting: Setting, tools: Tools, job: Job, progress: Progress) -> None:
    """Make or scan one part, unless another process has done so in the meantime."""
    parts, number = PartsFolder(tools.shards), job.part.number
    with parts.lock(f"{number:05d}", str(job.part)):
        if parts.over:
            return
        told = _NowAndThen(progress)
        if job.scan:
            if not parts.scanned(number, job.key):
                scan_part(tools, job.part, job.key, told)
        elif parts.result(number, job.key) is None:
            before = [parts.hashes(other) for other in setting.order[: job.place + 1]]
            make_part(tools, job.part, job.key, before, told)
        told.flush()


class _NowAndThen:
    """Tells how it goes, but not for every line."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._read = self._text_bytes = self._tokens = 0

    def advance(self, text_bytes: int) -> None:
        self._read += text_bytes
        if self._read >= REPORT_BYTES:
            self.flush()

    def count(self, text_bytes: int, tokens: int) -> None:
        self._text_bytes += text_bytes
        self._tokens += tokens
        if self._text_bytes >= REPORT_BYTES:
            self.flush()

    def flush(self) -> None:
        self._progress.advance(self._read)
        self._progress.count(self._text_bytes, self._tokens)
        self._read = self._text_bytes = self._tokens = 0
