"""A training that stands still is ended, and who held it up is named."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest

from pipeline.training.hang_report import hang_line
from tests.training.test_stopping import Command, long
from tests.training.test_training import ranks_of, wait_for

HANGS = """
import sys, time
from pipeline.training.watchdog import PATIENCE, Watchdog
how, limit = sys.argv[1], float(sys.argv[2])

def stand_still():
    time.sleep(60)

def tell(hang):
    print(hang.doing, hang.waiting, hang.function, flush=True)

with Watchdog(limit, tell) as watchdog:
    print("begun", flush=True)
    watchdog.last_words = lambda: print("last words", flush=True)
    for step in range(12):
        watchdog.alive(f"step {step}")
        time.sleep(0.1)
    if how == "stands":
        stand_still()
    if how == "saves":
        watchdog.alive("saving", PATIENCE)
        time.sleep(3 * limit)
print("done", flush=True)
time.sleep(2 * limit)
"""


def watched(how: str, limit: float) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", HANGS, how, str(limit)], capture_output=True, text=True, timeout=30, check=False
    )


def test_a_process_that_stands_still_says_where_and_ends():
    done = watched("stands", 0.5)
    assert done.returncode == 1
    assert done.stdout.splitlines() == ["begun", "step 11 False stand_still", "last words"]
    assert "in stand_still" in done.stderr and "last: step 11; all threads" in done.stderr


@pytest.mark.parametrize(("how", "limit"), [("goes on", 0.5), ("saves", 0.5), ("saves", 0.0)])
def test_steps_saves_and_the_end_are_no_hang(how, limit):
    done = watched(how, limit)
    assert (done.returncode, done.stdout) == (0, "begun\ndone\n"), done.stderr


def test_time_in_which_the_process_was_stopped_does_not_count():
    process = subprocess.Popen([sys.executable, "-c", HANGS, "goes on", "0.6"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(1.5)
    process.send_signal(signal.SIGCONT)
    output, _ = process.communicate(timeout=30)
    assert (process.returncode, output) == (0, "done\n")


def report(rank: int, function: str, waiting: bool, world_size: int = 4) -> dict:
    return {
        "rank": rank,
        "host": f"host{rank // 2}",
        "world_size": world_size,
        "doing": "step 12",
        "seconds": 600.4 + rank,
        "function": function,
        "waiting": waiting,
    }


def test_the_rank_that_gives_no_sign_is_named_first():
    waits = "all_reduce (from _reduced, pipeline/training/agreement.py:92)"
    line = hang_line([report(rank, waits, True) for rank in (3, 0, 1)])
    assert line.startswith(
        "no step for 10.1 minutes, at step 12: rank 2 gives no sign (stopped, or its host is gone); rank 0 on host0, "
        f"rank 1 on host0, rank 3 on host1 waited for others in {waits};"
    )


def test_the_rank_that_waited_for_nobody_comes_before_those_that_waited():
    line = hang_line([report(rank, "read" if rank == 2 else "all_reduce", rank != 2) for rank in range(4)])
    assert "step 12: rank 2 on host1 stood in read; rank 0 on host0, " in line
    many = hang_line([report(rank, "all_reduce", True, 100) for rank in range(1, 100)])
    assert "rank 0 gives no sign" in many and "and 95 more waited for others in all_reduce" in many


@pytest.mark.slow
def test_a_rank_that_is_stopped_is_named_and_the_training_ends(runs, recipe):
    recipe["train"]["hang_minutes"] = 0.1
    command = Command(runs, long(recipe)).until_step(3)
    command.signal_rank(1, signal.SIGSTOP)
    events = command.folder / "events.jsonl"
    try:
        wait_for(lambda: "training_hung" in events.read_text(), command.process)
    finally:
        for process in ranks_of(runs, recipe):  # else torchrun waits half a minute for it to end
            if process.environ().get("RANK") == "1":
                process.send_signal(signal.SIGCONT)
    code, output, errors = command.end()
    assert code == 1, output + errors
    hung = command.events("training_hung")[-1]["message"]
    assert errors == f"adaponder: {hung}\n"
    assert "rank 1 gives no sign (stopped, or its host is gone); rank 0 on " in hung
    assert " waited for others in " in hung
    log = (command.folder / "logs" / "attempt-001-rank-0000.log").read_text()
    assert "no sign of life for" in log and "train_segment" in log
    assert '"status": "FAILED"' in (command.folder / "mlflow.json").read_text()
    assert json.loads((command.folder / "logs" / "attempt-001-rank-0000.error.json").read_text())["kind"] == "hang"
