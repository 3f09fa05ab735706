"""A watcher beside a training on this machine: a child process of the training's command.

It never takes the training down. One that dies is started again, which is safe at any moment (`claims`); one that says
why it ends is not, and what it said is told when the training is over. Its lines go to the same terminal as the
training's; what it and its libraries say on stderr is kept in a log of each start.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape

from pipeline.console import print_between
from pipeline.errors import AdaPonderError, UserError, WorldError
from pipeline.recipe import Recipe
from pipeline.run_folder import RunFolder
from pipeline.training.stopping import EXIT_REQUEUE, Stopped
from pipeline.watching.attempt import Ended, how_it_ended
from pipeline.watching.overview import is_all_settled
from pipeline.watching.parent import environment_of_child
from pipeline.watching.stop_flag import StopFlag

RESTARTS = 5
"""Of watchers that die one soon after the other."""
_FIRST_PAUSE_SECONDS = 1.0
"""Before the first restart; twice as long before each further one."""
_SOUND_SECONDS = 600.0
"""One that lived so long was sound: the deaths before it do not count."""
_SECONDS_TO_END = 40.0
"""What is judged right now is ended first, for which the watcher gives it 20 s."""
_LOG = re.compile(r"watch-(\d{3,})\.log")


@dataclass(frozen=True)
class _End:
    """How a watcher has ended for good."""

    code: int
    error: str


class WatcherBeside:
    """Used in a `with` around the training: left with an error, the watcher is ended too."""

    def __init__(self, recipe: Recipe, folder: RunFolder, recipe_file: Path) -> None:
        """recipe_file: what the watcher reads, the resolved recipe."""
        self._recipe, self._folder = recipe, folder
        self._command = [sys.executable, "-m", "pipeline", "watch", str(recipe_file), "--runs", str(folder.root)]
        self._asked_to_end = threading.Event()
        self._training_goes_on = True
        self._starting = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._end: _End | None = None
        self._thread = self._begin()

    def __enter__(self) -> WatcherBeside:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def finish(self) -> AdaPonderError | None:
        """Wait until all that is owed is judged, after the training's last checkpoint is saved; what is to be told.

        SIGTERM, SIGUSR1 and Ctrl-C end the watcher: then raises `Stopped` or `KeyboardInterrupt`.
        """
        self._training_goes_on = False
        if self._end is not None and self._end.code == 0:
            # It took an earlier checkpoint of the last step for the last, which the training has saved anew since.
            self._thread = self._begin()
        elif self._end is None:
            print_between("watch: the training has ended, what is still owed is judged")
        stop = StopFlag()
        with stop.listening():
            while self._thread.is_alive() and not stop.is_set:
                stop.wait(0.2)
            self.end()
        stop.raise_if_set()
        assert self._end is not None
        return _error(self._end)

    def end(self) -> None:
        """Make sure that none is left; its claims are given back."""
        self._asked_to_end.set()
        with self._starting:
            process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
        self._thread.join(_SECONDS_TO_END)
        if process is not None and self._thread.is_alive():
            process.kill()
            self._thread.join()

    def _begin(self) -> threading.Thread:
        self._end = None
        thread = threading.Thread(target=self._look_after, name="watcher", daemon=True)
        thread.start()
        return thread

    def _look_after(self) -> None:
        """Until a watcher ends for good. The thread outlives its watchers: the kernel ends those that it leaves."""
        restarts = 0
        while True:
            began = time.monotonic()
            try:
                code, told, log = self._one()
            except OSError as error:  # a disk that is full, no room for another process
                code, told, log = WorldError.exit_code, Ended(f"{error.filename or 'it'}: {error.strerror}"), None
            if self._asked_to_end.is_set() or code == 0:
                self._end = _End(code, told.error)
                return
            if self._has_said_why(code, told):
                self._end_for_good(EXIT_REQUEUE if told.stopped else code, told.error)
                return
            if time.monotonic() - began > _SOUND_SECONDS:
                restarts = 0
            error = told.error if log is None else f"{told.error} ({log})"
            if restarts == RESTARTS:
                error = f"watch: the watcher ended {restarts + 1} times and is not started again: {error}"
                self._end_for_good(WorldError.exit_code, error)
                return
            pause = _FIRST_PAUSE_SECONDS * 2**restarts
            restarts += 1
            again = f"started again in {pause:.0f} s, {restarts} of {RESTARTS} times"
            print_between(f"[yellow]watch: the watcher ended, {again}: {escape(error)}[/yellow]")
            self._asked_to_end.wait(pause)

    def _end_for_good(self, code: int, error: str) -> None:
        """Tell it now, if the command does not: that one is busy training, which goes on."""
        if self._training_goes_on:
            print_between(f"[red]{escape(error)}; the training goes on without a watcher[/red]")
        self._end = _End(code, error)

    def _one(self) -> tuple[int, Ended, Path | None]:
        """A watcher from its start to its end: exit code, negative for a signal; what that means; its log, if it said
        anything."""
        log = self._new_log()
        with self._starting:
            if self._asked_to_end.is_set():
                return EXIT_REQUEUE, Ended(stopped=True), None
            with open(log, "wb") as file:
                # A session of its own: of Ctrl-C it hears from here, when the training has ended.
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stderr=file,
                    env=environment_of_child(),
                    start_new_session=True,
                )
        code = self._process.wait()
        told = how_it_ended(code, log)
        if log.stat().st_size:
            return code, told, log
        log.unlink()
        return code, told, None

    def _has_said_why(self, code: int, told: Ended) -> bool:
        """Whether it would end in the same way again: a mistake, all that could be judged is, it was asked to stop."""
        return told.stopped or code == UserError.exit_code or (code == WorldError.exit_code and self._is_all_settled())

    def _new_log(self) -> Path:
        self._folder.logs.mkdir(parents=True, exist_ok=True)
        numbers = [int(match[1]) for path in self._folder.logs.iterdir() if (match := _LOG.fullmatch(path.name))]
        return self._folder.logs / f"watch-{max(numbers, default=0) + 1:03d}.log"

    def _is_all_settled(self) -> bool:
        try:
            return is_all_settled(self._recipe, self._folder)
        except AdaPonderError:  # a damaged file, which the watcher has named
            return False


def _error(end: _End) -> AdaPonderError | None:
    """What the command ends with."""
    if end.code == 0:
        return None
    if end.code == EXIT_REQUEUE:
        return Stopped("the watcher was stopped: the same command continues", step=0, requeue=True)
    if end.code == UserError.exit_code:
        return UserError(end.error)
    return WorldError(end.error)
