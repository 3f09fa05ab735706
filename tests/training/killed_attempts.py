"""Starts of `adaponder train` that are watched from outside and killed with -9 at chosen moments."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.conftest import Runs
from tests.training.test_training import ranks_of, wait_for


class Attempt:
    """One start of the command, watched from outside by what it writes."""

    def __init__(self, runs: Runs, recipe: dict[str, Any]) -> None:
        self._runs, self._recipe = runs, recipe
        self.folder = runs.root / recipe["name"]
        self.checkpoints = self.folder / "checkpoints"
        self.store_journal = runs.root / "mlflow.db-journal"
        self.errors = runs.root / "stderr"
        self._began = time.time()
        self._events = self.folder / "events.jsonl"
        self._earlier_events = self._events.stat().st_size if self._events.exists() else 0
        self._logs = set((self.folder / "logs").glob("*-rank-*.log"))
        with open(self.errors, "w") as errors:
            self.process = subprocess.Popen(
                runs.command("train", recipe),
                env={**runs.environment(), "TMPDIR": str(runs.root / "temporary")},
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )

    def wait_for(self, happened: Callable[[], Any]) -> None:
        wait_for(happened, self.process, 120)

    def ranks_begun(self) -> bool:
        return len(set((self.folder / "logs").glob("*-rank-*.log")) - self._logs) == 2

    def event(self, kind: str) -> dict[str, Any] | None:
        """This attempt's last event of that kind."""
        lines = [line for line in whole_lines(self._events, self._earlier_events) if f'"kind": "{kind}"' in line]
        return json.loads(lines[-1]) if lines else None

    def taken(self) -> int:
        """Steps that this attempt has logged."""
        started, file = self.event("training_started"), self.folder / "metrics.jsonl"
        if started is None or not file.exists():
            return 0
        lines = whole_lines(file, max(0, file.stat().st_size - (1 << 14)))  # of all that would take the ranks' time
        last = json.loads(lines[-1]) if lines else {"time": 0}
        return last["step"] - started["step"] if last["time"] > self._began else 0

    def kill_all(self, generator: random.Random) -> None:
        """The command, torchrun and the ranks, in any order."""
        parent = psutil.Process(self.process.pid)
        found = [parent, *parent.children(recursive=True)]
        generator.shuffle(found)
        for process in found:
            with suppress(psutil.NoSuchProcess):  # each dies with its parent
                process.kill()
        assert self.process.wait(30) == -signal.SIGKILL
        wait_for(lambda: not ranks_of(self._runs, self._recipe), seconds=30)

    def kill_a_rank(self, rank: int) -> None:
        """One of the ranks: the command ends the other and says which one died."""
        for process in ranks_of(self._runs, self._recipe):
            if process.environ().get("RANK") == str(rank):
                process.kill()
        assert self.process.wait(60) == 1
        told = self.errors.read_text()
        assert f"rank {rank} ended with exit code -9 and no message" in told and told.count("\n") == 1
        assert not ranks_of(self._runs, self._recipe)


def whole_lines(path: Path, start: int = 0) -> list[str]:
    """From byte `start` on; the first may have lost its beginning."""
    if not path.is_file():
        return []
    with open(path, "rb") as file:
        file.seek(start)
        text = file.read().decode(errors="replace")
    return text[: text.rfind("\n") + 1].splitlines()


def at_the_start(attempt: Attempt, generator: random.Random) -> None:
    """While the ranks import, find each other, check."""
    attempt.wait_for(attempt.ranks_begun)
    time.sleep(generator.uniform(0, 5))


def while_loading(attempt: Attempt, generator: random.Random) -> None:
    """While engines are built, states loaded, MLflow's run opened."""
    attempt.wait_for(lambda: attempt.event("training_started"))
    time.sleep(generator.uniform(0, 2))


def in_a_step(attempt: Attempt, generator: random.Random) -> None:
    steps = generator.randint(1, 25)
    attempt.wait_for(lambda: attempt.taken() >= steps)
    time.sleep(generator.uniform(0, 0.05))


def while_saving(attempt: Attempt, generator: random.Random) -> None:
    attempt.wait_for(lambda: attempt.taken() >= 1)
    attempt.wait_for(lambda: list(attempt.checkpoints.glob("*.partial")))
    time.sleep(generator.uniform(0, 0.06))


def after_a_save(attempt: Attempt, generator: random.Random) -> None:
    """While `latest` moves and older checkpoints are removed."""
    attempt.wait_for(lambda: attempt.taken() >= 1)
    known = set(attempt.checkpoints.glob("step-*/COMPLETE"))
    attempt.wait_for(lambda: set(attempt.checkpoints.glob("step-????????/COMPLETE")) - known)
    time.sleep(generator.uniform(0, 0.02))


def while_logging(attempt: Attempt, generator: random.Random) -> None:
    """In the middle of a transaction of MLflow's store."""
    attempt.wait_for(lambda: attempt.taken() >= 1)
    deadline = time.monotonic() + 10
    # Without a pause: a transaction takes a few milliseconds.
    while not attempt.store_journal.exists() and time.monotonic() < deadline:
        assert attempt.process.poll() is None
