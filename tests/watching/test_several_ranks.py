"""A watcher whose judgements are shared by two ranks (`cluster.evaluation_ranks`)."""

from __future__ import annotations

import signal
import subprocess
import time

import pytest

from pipeline.run_status import status_of
from tests.evaluation.tiny_run import write_checkpoint
from tests.watching.test_watcher import wait_until
from tests.watching.watchers import events_of, finish, in_mlflow, judged, start_watcher

pytestmark = pytest.mark.slow

CLUSTER = ("evaluation_ranks=2", "gpus_per_node=0", "ranks_per_node=1")
TWO_RANKS = [word for field in CLUSTER for word in ("--set", f"cluster.{field}")]


def test_ranks_end_with_the_watcher_and_judge_when_it_is_started_again(run, model):
    write_checkpoint(run, model, 20)
    watcher = start_watcher(run, *TWO_RANKS)
    wait_until(lambda: events_of(run, "evaluation_begun"), watcher)
    time.sleep(3)  # somewhere between the start of the ranks and their result
    watcher.send_signal(signal.SIGTERM)
    code, said = finish(watcher, timeout=40)
    assert code == 75, said
    alive = subprocess.run(["pgrep", "-f", f"evaluation.worker.*{run.path}"], capture_output=True, check=False)
    assert alive.returncode == 1, alive.stdout
    code, said = finish(start_watcher(run, *TWO_RANKS))
    assert code == 0, said
    assert judged(run) == {("step-00000020", "validation"), ("step-00000020", "depth")}
    assert in_mlflow(run) == [(20, "depth", "FINISHED"), (20, "validation", "FINISHED")]
    assert not events_of(run, "evaluation_failed"), "what was stopped has not failed"


def test_what_a_rank_says_of_a_failure_is_told_and_kept(run, model):
    write_checkpoint(run, model, 20)
    blocked = run.evaluation("step-00000020", "validation.partial")
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where a folder has to be")
    code, said = finish(start_watcher(run, *TWO_RANKS, "--set", "evaluate.jobs.tries=1"))
    assert code == 1, said
    assert judged(run) == {("step-00000020", "depth")}
    (failed,) = [job for job in status_of(run).jobs if job.state == "failed"]
    assert failed.error is not None and "evaluate: " in failed.error and "validation.partial" in failed.error
