"""Parts made by several processes: who makes which, what they tell, and what happens when one dies.

A worker (`tokenization.worker`) is a fresh process that is handed what it needs, is given one part after another, and
reports over a pipe of its own: no lock is shared, so a killed worker leaves nothing locked. Workers die with the
process that started them, however it ends.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from types import TracebackType
from typing import Any

from pipeline.console import console
from pipeline.errors import UserError, WorldError
from tokenization.job import Job, Setting, do_job
from tokenization.part import EncodingDiffers, Progress
from tokenization.plan import Part
from tokenization.worker import work

ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
"""Read by the native libraries of the workers, whose threads would stand in each other's way."""


class Workers:
    """Up to `most` processes; none where that is one, which this process is. Use as a context manager.

    They may be started before it is known what they shall do: a process takes half a second until it can begin, in
    which the one that starts it has other things to prepare.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._workers: list[tuple[Any, Connection]] = []

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _, connection in self._workers:
            connection.close()
        until = time.monotonic() + 0.5
        for process, _ in self._workers:
            process.join(timeout=max(0.0, until - time.monotonic()))
            if process.is_alive():
                process.kill()
        for process, _ in self._workers:
            process.join()

    def shared_among(self, jobs: int) -> int:
        """How many processes so many jobs are shared among."""
        return min(self._most, jobs)

    def start(self, jobs: int) -> None:
        """Have the processes for so many jobs."""
        wanted = self.shared_among(jobs)
        if wanted > max(1, len(self._workers)):
            self._start(wanted - len(self._workers))

    def do(
        self,
        setting: Setting,
        jobs: Sequence[Job],
        progress_of: Callable[[int], Progress],
        begins: Callable[[int, Part | None], object],
    ) -> None:
        """Do all jobs; in this process where one is enough.

        progress_of: whom worker i reports to; begins(worker, part or None): what it does now. Raises what a worker
        raised; `WorldError` where one died. Finished parts stay finished.
        """
        if self.shared_among(len(jobs)) == 1:
            tools = setting.open()
            for note in tools.notes:
                console.print(note, markup=False)
            for job in jobs:
                begins(0, job.part)
                do_job(setting, tools, job, progress_of(0))
            begins(0, None)
        else:
            self.start(len(jobs))
            self._give_out(setting, jobs, progress_of, begins)

    def _start(self, number: int) -> None:
        context = multiprocessing.get_context("spawn")
        kept = {name: os.environ.get(name) for name in ONE_THREAD}
        os.environ.update(ONE_THREAD)
        # Ctrl-C reaches the whole group; the parent says what to do. Ignored signals stay so in new processes.
        interrupt = signal.getsignal(signal.SIGINT)
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            for _ in range(number):
                ours, theirs = context.Pipe()
                process = context.Process(target=work, args=(theirs, os.getpid()), daemon=True)
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

    def _give_out(
        self,
        setting: Setting,
        jobs: Sequence[Job],
        progress_of: Callable[[int], Progress],
        begins: Callable[[int, Part | None], object],
    ) -> None:
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

        opened = ForkingPickler.dumps(setting)  # once for all
        for number in range(min(len(self._workers), len(jobs))):
            try:
                self._workers[number][1].send_bytes(opened)
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
