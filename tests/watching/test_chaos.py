"""Two watchers at once, killed with -9 at random moments and started again: no result is lost, none is doubled.

Prints its seed; CHAOS_SEED=... gives the same moments again. What a killed watcher had begun goes on beside its
followers, as on a real machine.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path

import pytest

from tests.evaluation.tiny_run import write_checkpoint
from tests.watching.watchers import events_of, finish, in_mlflow, judged, leftovers, note_results, start_watcher

pytestmark = pytest.mark.slow

KILLS = 5
LONGEST_SECONDS = 25.0
"""Between two kills; a judgement takes some ten seconds, most of them for imports."""


def test_killed_watchers_lose_and_double_nothing(run, model, tmp_path):
    seed = int(os.environ.get("CHAOS_SEED") or random.randrange(1 << 30))
    print("CHAOS_SEED", seed)
    generator = random.Random(seed)
    for step in (0, 5, 10):
        write_checkpoint(run, model, step)
    watchers = [start_watcher(run), start_watcher(run)]
    written: dict[Path, set[int]] = {}
    try:
        for number in range(KILLS):
            note_results(run, written, generator.uniform(2, LONGEST_SECONDS))
            victim = generator.randrange(2)
            watchers[victim].kill()
            finish(watchers[victim])
            if number == 2:
                write_checkpoint(run, model, 20)
            watchers[victim] = start_watcher(run)
        while any(watcher.poll() is None for watcher in watchers):
            note_results(run, written, 0.2)
    finally:
        ends = [finish(watcher, timeout=5) for watcher in watchers]
    assert [code for code, _ in ends] == [0, 0], ends
    owed = [(0, "validation"), (5, "validation"), (10, "depth"), (10, "validation"), (20, "depth"), (20, "validation")]
    assert judged(run) == {(f"step-{step:08d}", suite) for step, suite in owed}
    assert in_mlflow(run) == [(step, suite, "FINISHED") for step, suite in owed]
    assert {path: len(times) for path, times in written.items()} == dict.fromkeys(written, 1), "written once each"
    assert len(written) == len(owed)
    assert not leftovers(run)
    assert not events_of(run, "evaluation_failed"), "a watcher that is killed is no failure of what it judged"
    jobs = [json.loads(path.read_text()) for path in (run.path / "evaluation" / "jobs").glob("step-*/job.json")]
    assert {one["state"] for job in jobs for one in job["suites"].values()} == {"done"}
    alive = subprocess.run(["pgrep", "-f", f"pipeline evaluate.*{run.root}"], capture_output=True, check=False)
    assert alive.returncode == 1, "nothing is left at work when the watchers have ended"
