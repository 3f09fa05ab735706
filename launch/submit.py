"""Start or submit what a launch has written."""

from __future__ import annotations

import shlex
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from launch.targets.launching import START, Launch


def start_command(launch: Launch) -> list[str]:
    """The command that starts the launch's stage."""
    return ["bash", str(launch.path / START), launch.stage]


def shown(launch: Launch) -> str:
    """The same as an operator types it."""
    return shlex.join(start_command(launch))


def submit(launch: Launch) -> int:
    """Run it in the foreground; its exit code. SIGTERM and SIGUSR1 are passed on to it."""
    process = subprocess.Popen(start_command(launch))
    with _passing_on(process):
        code = process.wait()
    return code if code >= 0 else 128 - code


@contextmanager
def _passing_on(process: subprocess.Popen) -> Iterator[None]:
    before = {}
    for number in (signal.SIGTERM, signal.SIGUSR1):
        before[number] = signal.signal(number, lambda came, _: process.send_signal(came))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
