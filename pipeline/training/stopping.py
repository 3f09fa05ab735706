"""How a training is asked to stop before its end: a signal, its time limit, or the file STOP in the run's folder.

Each rank knows of its own signals and its own clock, rank 0 looks for the file. Any rank's wish is every rank's at the
next step (`pipeline.training.agreement`): all save and end. A preemption ends with `EXIT_REQUEUE`, so that whoever
started the training starts it again; a stop by the operator's file ends with 0, so that nobody does.

Light on purpose: a rank's process listens for signals before anything heavy is imported.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, ParamSpec, TypeVar

from pipeline.errors import AdaPonderError

EXIT_REQUEUE = 75
"""EX_TEMPFAIL of sysexits.h: stopped, everything kept, the same command continues."""
STOP_FILE = "STOP"
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
BEGAN_VARIABLE = "ADAPONDER_ATTEMPT_BEGAN"
"""When the command began to train, seconds since 1970; without it, the rank's own start counts."""
SAME_REQUEST_SECONDS = 5.0
"""Schedulers signal every process of a job, torchrun then passes on what it got: all of it is one request."""
_SECONDS_BETWEEN_LOOKS = 1.0
_KEPT_BACK_SHARE = 0.05
"""Of the time limit, for saving, before a save was measured."""
_SAVE_MARGIN = 1.5

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class Stopped(AdaPonderError):
    """The training stopped as it was asked to; what was trained is saved."""

    def __init__(self, message: str, *, step: int, requeue: bool, again: bool = False) -> None:
        """again: whoever started the training shall start it again at once."""
        super().__init__(message)
        self.step = step
        self.requeue = requeue
        self.again = again
        self.exit_code = EXIT_REQUEUE if requeue else 0


@dataclass(frozen=True)
class StopReason:
    """Why a rank wants to stop."""

    text: str
    """In words that go after "because of"."""
    requeue: bool
    """False: an operator wants it, and nobody shall start the training again."""


class StopSignals:
    """Listens for SIGTERM and SIGUSR1 for as long as the process lives; made in the main thread.

    A thread reads what Python's own C handler writes into a pipe, so that a signal is heard while the main thread waits
    inside a collective. The first is a request to stop; a SIGTERM more than a few seconds later ends the process at
    once.
    """

    def __init__(self, same_request_seconds: float = SAME_REQUEST_SECONDS) -> None:
        self.caught: str | None = None
        """Name of the first signal."""
        self.began = time.time()
        """When this process began to listen, seconds since 1970."""
        self._same_request_seconds = same_request_seconds
        self._caught_at = 0.0
        self._reading, writing = os.pipe()
        os.set_blocking(writing, False)
        for number in STOP_SIGNALS:
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, name="stop-signals", daemon=True).start()

    def _listen(self) -> None:
        while True:
            for number in os.read(self._reading, 64):
                if number in STOP_SIGNALS:
                    self._came(signal.Signals(number), time.monotonic())

    def _came(self, number: signal.Signals, now: float) -> None:
        if self.caught is None:
            self._caught_at = now
            self.caught = number.name
            print(f"{number.name}: stopping at the next step", file=sys.stderr, flush=True)
        elif number == signal.SIGTERM and now - self._caught_at > self._same_request_seconds:
            print("SIGTERM once more: ending at once", file=sys.stderr, flush=True)
            os._exit(128 + signal.SIGTERM)


class StopRequests:
    """What one rank knows of wishes to stop."""

    def __init__(self, signals: StopSignals, folder: Path, rank: int, stop_after_seconds: int, began: float) -> None:
        """folder: the run's. began: start of the attempt in seconds since 1970."""
        self._signals, self._rank = signals, rank
        self._file = folder / STOP_FILE
        # By the monotonic clock from here on: a host's clock may be set in mid-run.
        self._began = time.monotonic() - max(0.0, time.time() - began)
        self._limit = stop_after_seconds
        self._longest_save: float | None = None
        self._looked_at = float("-inf")
        self._found = False

    def wish(self, step_seconds: float = 0.0) -> StopReason | None:
        """Why this rank wants to stop now, None if it does not. step_seconds: what another step would take."""
        if self._file_stands():
            return StopReason(f"the file {self._file}", requeue=False)
        if self._signals.caught:
            return StopReason(self._signals.caught, requeue=True)
        if self._limit and time.monotonic() - self._began + self._kept_back() + step_seconds >= self._limit:
            return StopReason(f"train.stop_after_seconds {self._limit}", requeue=True)
        return None

    def saved(self, seconds: float) -> None:
        """A save took so long: the time kept back for the last one follows the longest."""
        self._longest_save = max(seconds, self._longest_save or 0.0)

    def clear(self) -> None:
        """Remove the file, so that the same command continues; rank 0 alone."""
        self._file.unlink(missing_ok=True)

    def _kept_back(self) -> float:
        if self._longest_save is None:
            return _KEPT_BACK_SHARE * self._limit
        return _SAVE_MARGIN * self._longest_save

    def _file_stands(self) -> bool:
        # Rank 0 alone and once a second: thousands of ranks asking at every step would load a shared file system.
        if self._rank != 0 or self._found:
            return self._found
        now = time.monotonic()
        if now - self._looked_at >= _SECONDS_BETWEEN_LOOKS:
            self._looked_at = now
            self._found = self._file.exists()
        return self._found


def stopped(step: int, reasons: list[tuple[StopReason, str]], kept: str) -> Stopped:
    """What to raise on every rank after `step` steps. reasons: of the ranks that have one, with the rank's name; kept:
    what became of the work. An operator's wish counts more than a scheduler's."""
    reason, who = min(reasons, key=lambda pair: pair[0].requeue)
    where = f" on {who}" if reason.requeue else ""
    return Stopped(
        f"stopped at step {step} because of {reason.text}{where}: {kept}; the same command continues",
        step=step,
        requeue=reason.requeue,
    )


def ends_on_signals(what: str) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """For a stage of one process that leaves nothing half done: SIGTERM and SIGUSR1 end it with `EXIT_REQUEUE`.

    `Stopped` is raised where the stage stands, so that its files are closed and removed as after any error.
    """

    def decorate(stage: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        @functools.wraps(stage)
        def run(*arguments: Parameters.args, **options: Parameters.kwargs) -> Result:
            if threading.current_thread() is not threading.main_thread():
                return stage(*arguments, **options)

            asked: list[Stopped] = []

            def end(number: int, _: object) -> NoReturn:
                name = signal.Signals(number).name
                told = f"{what} stopped because of {name}: the same command does it again"
                asked.append(Stopped(told, step=0, requeue=True))
                raise asked[-1]

            before = {number: signal.signal(number, end) for number in STOP_SIGNALS}
            try:
                result = stage(*arguments, **options)
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)
            if asked:  # raised where any error is only told, as while MLflow is, or where Python itself ignores it
                raise asked[0]
            return result

        return run

    return decorate
