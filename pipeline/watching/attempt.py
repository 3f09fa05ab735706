"""One try at judging a checkpoint, and how it ended; where it happens is a module of its own each."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.training.stopping import EXIT_REQUEUE

_TAIL_BYTES = 1 << 16
_OURS = re.compile(r"(?:adaponder|rank \d+ on \S+): ")
"""How a command's own line begins, or that of the ranks which did its work."""


@dataclass(frozen=True)
class Try:
    """What is asked for."""

    checkpoint: str
    suites: list[str]
    number: int
    """That of the claim, so no two tries at a checkpoint have the same."""

    @property
    def name(self) -> str:
        """Of its log and of its job in a cluster."""
        return f"eval-{self.checkpoint.removeprefix('step-')}-{self.number}"


@dataclass(frozen=True)
class Ended:
    """How a try ended."""

    error: str = "ended without its result"
    """What is told where a result is missing: whether one is, the results themselves say."""
    stopped: bool = False
    """It was asked to stop, which is nobody's failure."""


class Running(Protocol):
    """A try in progress."""

    look_seconds: float
    """How often it is worth asking how it is."""

    def ended(self) -> Ended | None:
        """None while it goes on, or while that cannot be found out."""
        ...

    def leave(self) -> None:
        """The watcher ends: what cannot go on without it is ended too."""
        ...


class Place(Protocol):
    """Where tries happen."""

    at_once: int
    """How many."""

    def begin(self, attempt: Try) -> Running:
        """Start it. Raises `WorldError` where the place refuses."""
        ...

    def again(self, name: str) -> Running | None:
        """A try by its name that an earlier watcher began; None where such end with their watcher."""
        ...

    def log(self, attempt: Try) -> Path:
        """Where what it says is kept."""
        ...


def how_it_ended(code: int, log: Path) -> Ended:
    """Of a process with that exit code, negative for a signal, that wrote to `log`."""
    stopped = code in (EXIT_REQUEUE, 130, -signal.SIGTERM, -signal.SIGINT)
    if code < 0:
        return Ended(f"killed by {signal.Signals(-code).name}", stopped)
    return Ended(last_error(log) or f"exit code {code}", stopped)


def last_error(log: Path) -> str | None:
    """The line that tells most of what a process said at its end: the command's own, else the last one."""
    try:
        with open(log, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    except OSError:
        return None
    return _last([line.removeprefix("adaponder: ") for line in lines if _OURS.match(line)]) or _last(lines)


def _last(lines: Sequence[str]) -> str | None:
    return next((line for line in reversed(lines) if line), None)
