"""Finds a training that stands still: no sign of life for some minutes, and the job is ended with the place named.

A rank that waits for another one in a collective would sit there until the collective's own time is up, and then only
say that it lost somebody. Each rank's watchdog writes the stacks of all threads into the rank's log and reports where
the rank stood (`pipeline.training.hang_report` makes one line of all reports).
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import NamedTuple

PATIENCE = 6.0
"""How many times the limit a first step (compilation, the first collectives) or a save may take."""
_POLL_SECONDS = 1.0
_WAITING = (os.path.join("torch", "distributed"), os.path.join("deepspeed", "comm"))
"""Where a rank stands that waits for others."""


@dataclass(frozen=True)
class Hang:
    """Where a rank stood when its time was up."""

    doing: str
    """What it said last: step 12, saving."""
    seconds: float
    """Since then."""
    function: str
    """The main thread's innermost function, and the project's one that called it."""
    waiting: bool
    """Whether a thread of it was waiting for other ranks."""


class _Sign(NamedTuple):
    doing: str
    patience: float


class Watchdog:
    """Watches this process from a thread; used in a `with`. Time in which the whole process was stopped does not count.

    A rank whose threads cannot run at all (stopped from outside, its host gone) cannot report itself: the others do,
    and name it as the one that gives no sign.
    """

    def __init__(self, limit_seconds: float, on_hang: Callable[[Hang], None]) -> None:
        """limit_seconds: 0 never fires. `on_hang` is called once, from the watchdog's thread, before the process is
        ended with exit code 1."""
        self._limit, self._on_hang = limit_seconds, on_hang
        self.last_words: Callable[[], None] = lambda: None
        """What else is to be done before the process ends."""
        self._sign = _Sign("starting", PATIENCE)
        self._ended = threading.Event()
        self._main = threading.main_thread()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self._limit:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()

    def alive(self, doing: str, patience: float = 1.0) -> None:
        """This rank goes on with `doing`, which may take `patience` times the limit; costs nothing."""
        self._sign = _Sign(doing, patience)

    def _watch(self) -> None:
        poll = min(_POLL_SECONDS, self._limit / 10)
        seen, silent, last = self._sign, 0.0, time.monotonic()
        while not self._ended.wait(poll):
            now = time.monotonic()
            # A process that was stopped and goes on has not been standing still for that time.
            silent += min(now - last, 5 * poll)
            last = now
            if self._sign is not seen:
                seen, silent = self._sign, 0.0
            elif silent > self._limit * seen.patience:
                self._fire(seen, silent)

    def _fire(self, sign: _Sign, silent: float) -> None:
        code = 1
        try:
            print(f"no sign of life for {silent:.0f} s, last: {sign.doing}; all threads:", file=sys.stderr, flush=True)
            faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
            frames = sys._current_frames()
            main = frames.get(self._main.ident or 0)
            waiting = any(_waits(frame) for ident, frame in frames.items() if ident != threading.get_ident())
            self._on_hang(Hang(sign.doing, silent, _place(main), waiting))
            self.last_words()
        except BaseException:
            # The process ends whatever fails here: a full disk must not make a hang of it again.
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def _waits(frame: FrameType) -> bool:
    return any(part in frame.f_code.co_filename for part in _WAITING)


def _place(frame: FrameType | None) -> str:
    if frame is None:
        return "an unknown place"
    found = frame.f_code.co_name
    inner = frame
    while frame is not None:
        path = frame.f_code.co_filename
        if f"{os.sep}pipeline{os.sep}" in path:
            name = os.path.relpath(path, path[: path.rindex(f"{os.sep}pipeline{os.sep}")])
            caller = f"{name}:{frame.f_lineno}"
            return f"{found} ({caller})" if frame is inner else f"{found} (from {frame.f_code.co_name}, {caller})"
        frame = frame.f_back
    return found
