"""Parts made by several processes: who makes which, what they tell, and what happens when one dies.

A worker is a fresh process that opens the recipe for itself, is given one part after another, and reports over a pipe
of its own: no lock is shared, so a killed worker leaves nothing locked. Workers die with the process that started
them, however it ends.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from launch.local import die_with_parent
from pipeline.console import console
from pipeline.errors import AdaPonderError, UserError, WorldError
from pipeline.recipe import Recipe
from tokenization.encoding.tokenizer import DocumentTokenizer
from tokenization.part import EncodingDiffers, Progress, Tools, make_part, scan_part
from tokenization.part_folder import PartsFolder
from tokenization.plan import Part

REPORT_BYTES = 1 << 20
"""A worker reports after so much text."""


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
    """What a worker opens."""

    recipe: Recipe
    shards: Path
    tokenizer_folder: Path
    tokenizer_name: str
    tokenizer_sha256: str
    slow_because: str | None
    """Why the fast encoding is not used, where it is known to differ."""
    order: tuple[int, ...]
    """Part numbers in the order in which the first of equal documents counts; empty where duplicates stay."""

    def open(self) -> Tools:
        end_of_document = self.recipe.tokenize.end_of_document
        tokenizer = DocumentTokenizer(self.tokenizer_folder, self.tokenizer_name, end_of_document, self.slow_because)
        if tokenizer.entry.sha256 != self.tokenizer_sha256:
            raise WorldError(f"{self.tokenizer_folder} was replaced while its shards were being made: start again")
        return Tools.open(self.recipe, self.shards, tokenizer)


def do_jobs(
    setting: Setting,
    jobs: Sequence[Job],
    workers: int,
    progress_of: Callable[[int], Progress],
    begins: Callable[[int, Part | None], object],
) -> None:
    """Do all jobs in `workers` processes; in this one where that is one.

    progress_of: whom worker i reports to; begins(worker, part or None): what it does now. Raises what a worker raised;
    `WorldError` where one died. Finished parts stay finished.
    """
    if workers == 1:
        tools = setting.open()
        for note in tools.notes:
            console.print(note, markup=False)
        for job in jobs:
            begins(0, job.part)
            do_job(setting, tools, job, progress_of(0))
        begins(0, None)
        return
    pool = _Pool(setting, workers)
    try:
        pool.run(jobs, progress_of, begins)
    finally:
        pool.stop()


def do_job(setting: Setting, tools: Tools, job: Job, progress: Progress) -> None:
    """Make or scan one part, unless another process has done so in the meantime."""
    parts, number = PartsFolder(tools.shards), job.part.number
    with parts.lock(f"{number:05d}", str(job.part)):
        if parts.over:
            return
        if job.scan:
            if not parts.scanned(number, job.key):
                scan_part(tools, job.part, job.key, progress)
        elif parts.result(number, job.key) is None:
            before = [parts.hashes(other) for other in setting.order[: job.place + 1]]
            make_part(tools, job.part, job.key, before, progress)


class _Pool:
    def __init__(self, setting: Setting, workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._workers: list[tuple[Any, Connection]] = []
        # Read by the native libraries of the workers, whose threads would stand in each other's way.
        kept = {
            name: os.environ.get(name) for name in ("TOKENIZERS_PARALLELISM", "RAYON_NUM_THREADS", "OMP_NUM_THREADS")
        }
        os.environ.update(TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1", OMP_NUM_THREADS="1")
        # Ctrl-C reaches the whole group; the parent says what to do. Ignored signals stay so in new processes.
        interrupt = signal.getsignal(signal.SIGINT)
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            for _ in range(workers):
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(setting, theirs, os.getpid()), daemon=True)
                process.start()
                theirs.close()
                self._workers.append((process, ours))
        finally:
            if in_main_thread:
                signal.signal(signal.SIGINT, interrupt)
            for name, value in kept.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    def run(self, jobs: Sequence[Job], progress_of: Callable[[int], Progress], begins: Callable[..., Any]) -> None:
        waiting = list(reversed(jobs))
        doing: dict[int, Job] = {}
        connections = {connection: number for number, (_, connection) in enumerate(self._workers)}
        notes: set[str] = set()

        def give(number: int) -> None:
            if waiting:
                doing[number] = waiting.pop()
                begins(number, doing[number].part)
                self._workers[number][1].send(doing[number])
            else:
                begins(number, None)

        idle = set(connections.values())
        for number in sorted(idle):
            try:
                give(number)
            except OSError:
                raise self._died(number, doing.get(number)) from None
        while doing:
            for connection in wait([self._workers[number][1] for number in doing]):
                assert isinstance(connection, Connection)
                number = connections[connection]
                try:
                    kind, content = connection.recv()
                    if kind == "advance":
                        progress_of(number).advance(content)
                    elif kind == "count":
                        progress_of(number).count(*content)
                    elif kind == "note" and content not in notes:
                        notes.add(content)  # every worker opens the same things
                        console.print(content, markup=False)
                    elif kind == "failed":
                        raise _raised(*content)
                    elif kind == "done":
                        del doing[number]
                        give(number)
                except (EOFError, OSError):
                    raise self._died(number, doing.get(number)) from None

    def stop(self) -> None:
        for _, connection in self._workers:
            connection.close()
        until = time.monotonic() + 0.5
        for process, _ in self._workers:
            process.join(timeout=max(0.0, until - time.monotonic()))
            if process.is_alive():
                process.kill()
        for process, _ in self._workers:
            process.join()

    def _died(self, number: int, job: Job | None) -> WorldError:
        process = self._workers[number][0]
        process.join(timeout=5)
        code = process.exitcode
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
        memory = "; if memory ran out, give fewer --workers" if code == -signal.SIGKILL else ""
        what = f" at {job.part}" if job else ""
        return WorldError(f"worker {number} (process {process.pid}) {how}{what}{memory}; the same command continues")


def _raised(kind: str, message: str) -> Exception:
    if kind == "user":
        return UserError(message)
    if kind == "world":
        return WorldError(message)
    if kind == "differs":
        return EncodingDiffers(message)
    return RuntimeError(f"in a worker:\n{message}")


class _ParentGoneError(Exception):
    """Nobody reads the pipe any more."""


class _Reports:
    """Tells the parent, but not for every line."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
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

    def send(self, kind: str, content: object) -> None:
        try:
            self._connection.send((kind, content))
        except OSError as error:
            raise _ParentGoneError from error

    def flush(self) -> None:
        self.send("advance", self._read)
        self.send("count", (self._text_bytes, self._tokens))
        self._read = self._text_bytes = self._tokens = 0


def _work(setting: Setting, connection: Connection, parent: int) -> None:
    """The life of a worker: jobs until the pipe closes."""
    die_with_parent()
    if os.getppid() != parent:  # it ended before we asked
        return
    console.quiet = True  # the parent has said the same
    tools: Tools | None = None
    while True:
        try:
            job = connection.recv()
        except (EOFError, OSError):  # the parent needs no more
            return
        reports = _Reports(connection)
        try:
            if tools is None:
                tools = setting.open()
                for note in tools.notes:
                    reports.send("note", note)
            do_job(setting, tools, job, reports)
            reports.flush()
            reports.send("done", None)
        except _ParentGoneError:
            return
        except EncodingDiffers as error:
            failure = "differs", str(error)
        except AdaPonderError as error:
            failure = "user" if isinstance(error, UserError) else "world", str(error)
        except OSError as error:
            failure = "world", f"{error.filename or job.part}: {error.strerror or error}"
        except BaseException:
            failure = "bug", traceback.format_exc()
        else:
            continue
        with suppress(_ParentGoneError):
            reports.send("failed", failure)
        return
