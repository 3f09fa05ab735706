"""Judging on this machine: a child process, one at a time."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

from launch.targets.launching import Launch
from pipeline.watching.attempt import Ended, Running, Try, how_it_ended

_SECONDS_TO_END = 20.0


class LocalPlace:
    """Child processes of the watcher."""

    at_once = 1

    def __init__(self, launch: Launch, recipe_file: Path) -> None:
        self._launch, self._recipe_file = launch, recipe_file

    def log(self, attempt: Try) -> Path:
        return self._launch.folder.logs / f"{attempt.name}.log"

    def begin(self, attempt: Try) -> Running:
        path = self.log(attempt)
        path.parent.mkdir(parents=True, exist_ok=True)
        command = self._launch.evaluation(
            attempt.checkpoint, attempt.suites, str(self._launch.folder.root), str(self._recipe_file)
        )
        with open(path, "wb") as log:
            # A session of its own: of Ctrl-C the watcher tells it.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        return _Child(process, path)

    def again(self, name: str) -> Running | None:
        return None  # one that outlived its watcher holds the checkpoint's lock: the next try waits for its results


class _Child:
    look_seconds = 0.5

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process, self._log = process, log

    def ended(self) -> Ended | None:
        code = self._process.poll()
        return None if code is None else how_it_ended(code, self._log)

    def leave(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, 9)
            self._process.wait()
