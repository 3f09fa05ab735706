"""A check in which the ranks compute together, ended on all of them where it fails on one.

The others would wait in a collective until its time is up, and only then say that they lost somebody. So each rank has
a thread that waits for such news in the store; a collective that hangs cannot be interrupted, so the process ends.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn, cast

from launch.preflight.check import Told
from launch.preflight.meeting import Meeting

_LOOK_SECONDS = 0.3
_GRACE_SECONDS = 3.0
"""For other ranks to say what went wrong with them, after the first has."""
_REPORT_SECONDS = 30.0
"""That ranks wait for rank 0's report: a launcher ends everything when the first of them ends."""

Look = Callable[[], dict[str, Any]]
Report = Callable[[list[Told]], None]


def look_together(meeting: Meeting, name: str, look: Look, report: Report) -> dict[str, Any]:
    """What `look` returns; collective.

    Where it returns {"error": ...} on any rank, rank 0 calls `report` with what those ranks said, and every rank ends
    with exit code 1.
    """
    news = _News(meeting, name, report)
    with news:
        seen = look()
        if "error" in seen:
            news.spread(seen)
    return seen


class _News:
    """Waits for a rank that failed, while entered."""

    def __init__(self, meeting: Meeting, name: str, report: Report) -> None:
        assert meeting.store is not None, "one process alone has nobody to wait for"
        self._meeting, self._name, self._report = meeting, name, report
        self._store = meeting.store
        self._listening: Any = cast(Any, meeting.store).clone()  # a store answers one question at a time
        self._over = threading.Event()
        self._ending = threading.Lock()
        self._thread = threading.Thread(target=self._listen, name="preflight-news", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def spread(self, seen: dict[str, Any]) -> NoReturn:
        """Tell the others why this rank failed, and end with them."""
        self._store.set(f"{self._name}/error/{self._meeting.rank}", json.dumps(seen))
        self._store.set(f"{self._name}/failed", "")
        self._end(self._store)

    def _listen(self) -> None:
        try:
            while not self._over.wait(_LOOK_SECONDS):
                if self._listening.check([f"{self._name}/failed"]):
                    self._end(self._listening)
        except RuntimeError:  # the store is gone, and with it rank 0
            if not self._over.is_set():
                self._exit()

    def _end(self, store: Any) -> NoReturn:
        with self._ending:  # the thread, or the rank's own failure: whichever is first ends the process
            deadline = time.monotonic() + _REPORT_SECONDS
            if self._meeting.rank:
                while time.monotonic() < deadline and not store.check([f"{self._name}/reported"]):
                    time.sleep(_LOOK_SECONDS)
                self._exit()
            time.sleep(_GRACE_SECONDS)
            said = []
            for place in self._meeting.places:
                key = f"{self._name}/error/{place.rank}"
                if store.check([key]):
                    said.append(Told(place, json.loads(store.get(key))))
            try:
                self._report(said)
            finally:
                store.set(f"{self._name}/reported", "")
                time.sleep(2 * _LOOK_SECONDS)  # this process may hold the store
                self._exit()

    @staticmethod
    def _exit() -> NoReturn:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
