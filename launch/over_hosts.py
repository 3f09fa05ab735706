"""DeepSpeed's launcher with an end: `python -m launch.over_hosts RECIPE --runs ROOT -- OPTIONS OF THE LAUNCHER ...`.

pdsh waits for every host, for one that is cut off as long as TCP does, and for the ranks of the others until they give
up waiting for one that never began. Here the first host that fails ends the launch: the others get some time to say why
they fail too, then their ssh sessions are closed, and ranks end with them (`launch.ssh_session`). What the launcher and
all hosts say on stderr goes to the attempt's launcher log, and one line tells the operator what went wrong.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

import psutil

from pipeline.command_line import reported
from pipeline.errors import WorldError
from pipeline.recipe_reader import read_recipe
from pipeline.run_folder import RunFolder
from pipeline.training.attempt import (
    ATTEMPT_VARIABLE,
    first_told,
    launcher_log,
    next_attempt,
    raise_first_failure,
    reported_stop,
    reports,
)
from pipeline.training.stopping import EXIT_REQUEUE, STOP_SIGNALS

_ENDED = re.compile(r"pdsh@[^:]*: ([^:]+): ssh exited with exit code (\d+)")
_NO_CONNECTION = 255
"""ssh's exit code where it could not connect, or has lost the connection."""
_NOT_CONNECTED_SECONDS = 5.0
_FAILED_SECONDS = 30.0
"""To the end of the other hosts' ranks: longer than they need to notice that one has ended, and to tell it."""
_KILL_SECONDS = 5.0


def main(arguments: Sequence[str]) -> int:
    """Run the launcher and wait; its exit code, or that of the end which the ranks report."""
    parser = argparse.ArgumentParser(prog="launch.over_hosts")
    parser.add_argument("recipe")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("options", nargs="+")
    given = parser.parse_args(arguments)
    folder = RunFolder(given.runs.absolute(), read_recipe(given.recipe))
    attempt = next_attempt(folder.logs)
    log = launcher_log(folder.logs, attempt)
    log.parent.mkdir(parents=True, exist_ok=True)
    # The one way by which DeepSpeed takes variables to every host.
    with open(os.environ["DS_ENV_FILE"], "a", encoding="utf-8") as environment:
        environment.write(f"{ATTEMPT_VARIABLE}={attempt}\n")
    with _Launcher(given.options, log) as launcher:
        code = launcher.wait()
    if stop := reported_stop(folder.logs, attempt):
        print(stop)
        return stop.exit_code
    if code in (0, EXIT_REQUEUE):
        return code
    if first_told(reports(folder.logs, attempt)) is None and launcher.failed:
        host, (_, said) = next(iter(launcher.failed.items()))
        raise WorldError(f"{host}: {said}; see {log}")
    raise_first_failure(folder.logs, attempt, code)
    return code


class _Launcher:
    """DeepSpeed's launcher in a session of its own: a Ctrl-C would have it log in everywhere once more, to a host that
    is gone too; here it closes all connections."""

    def __init__(self, options: Sequence[str], log: Path) -> None:
        self.failed: dict[str, tuple[int, str]] = {}
        """Of hosts whose ssh ended with another code than 0: that code, and what was said there last."""
        self._said: dict[str, str] = {}
        self._log = open(log, "ab", buffering=0)  # noqa: SIM115 - closed at the end of `with`
        self._process = subprocess.Popen(
            [sys.executable, "-m", "deepspeed.launcher.runner", *options],
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._deadline = float("inf")

    def __enter__(self) -> _Launcher:
        signal.signal(signal.SIGINT, self._interrupted)  # which bash has a script's background commands ignore
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            signal.signal(signal.SIGHUP, self._interrupted)
        for number in STOP_SIGNALS:  # of a whole process group: train.sh has the ranks save
            signal.signal(number, lambda *_: None)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._reader.join(_KILL_SECONDS)
        self._log.close()

    def wait(self) -> int:
        """Until it ends, or has to be ended; its exit code."""
        while time.monotonic() < self._deadline:
            with suppress(subprocess.TimeoutExpired):
                code = self._process.wait(1.0)
                return code if code >= 0 else 128 - code
        return max(code for code, _ in self.failed.values())

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._log.write(line)
            text = line.decode(errors="replace").rstrip()
            if match := _ENDED.match(text):
                host, code = match[1], int(match[2])
                self.failed[host] = code, self._said.get(host, f"ended with exit code {code}")
                patience = _NOT_CONNECTED_SECONDS if code == _NO_CONNECTION else _FAILED_SECONDS
                self._deadline = min(self._deadline, time.monotonic() + patience)
            else:
                host, colon, said = text.partition(": ")
                if colon and said and not host.startswith("pdsh@"):
                    self._said[host] = said

    def _interrupted(self, number: int, _: FrameType | None) -> None:
        sys.exit(128 + number)  # through the end of `with`

    def _end(self) -> None:
        """End the launcher, pdsh and every ssh that is left."""
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(self._process.pid)
            # Killed, not asked: DeepSpeed would log in on every host to look for what it has started.
            found = [root, *root.children(recursive=True)]
            for process in found:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(found, timeout=_KILL_SECONDS)
            self._process.wait()


if __name__ == "__main__":

    @reported
    def _command() -> None:
        code = main(sys.argv[1:])
        if code:
            sys.exit(code)

    _command()
