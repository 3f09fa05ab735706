"""A watcher that is asked to end: noted by the signal's handler, heeded where nothing is half begun."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.training.stopping import STOP_SIGNALS, Stopped


class StopFlag:
    """Set by SIGTERM, SIGUSR1 and Ctrl-C within `listening`.

    An error raised in a handler could come between the start of a child and the moment its number is known.
    """

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._signal: int | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """In the main thread."""
        before = {number: signal.signal(number, self._came) for number in (*STOP_SIGNALS, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @property
    def is_set(self) -> bool:
        return self._asked.is_set()

    def wait(self, seconds: float) -> None:
        """Sleep; ends at once when the watcher is asked to end."""
        self._asked.wait(seconds)

    def raise_if_set(self) -> None:
        """`Stopped`, or `KeyboardInterrupt` for Ctrl-C."""
        if self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self._signal is not None:
            name = signal.Signals(self._signal).name
            raise Stopped(f"watch stopped because of {name}: the same command continues", step=0, requeue=True)

    def _came(self, number: int, _: object) -> None:
        self._signal = self._signal or number
        self._asked.set()
