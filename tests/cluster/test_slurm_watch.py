"""`adaponder watch` with jobs of a real Slurm: watchers are killed, jobs are cancelled, and every result stands once.

Prints its seed; CHAOS_SEED=... gives the same moments again.
"""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

import pytest

from pipeline.run_folder import RunFolder
from pipeline.run_status import status_of
from pipeline.tracking import sync
from tests.evaluation.tiny_run import copy_run, make_model, make_run, write_checkpoint
from tests.watching.watchers import events_of, finish, in_mlflow, judged, leftovers, note_results, start

pytestmark = pytest.mark.cluster

KILLS = 3
LONGEST_SECONDS = 8.0
"""Between two kills; a watcher needs some three to ask for its first job, a job some ten."""


@pytest.fixture(scope="module")
def tokenized(cluster, tmp_path_factory):
    return make_run(
        tmp_path_factory.mktemp("watched"),
        evaluate={
            "rows_per_source": 2,
            "suites": ["validation"],
            "full_suites": ["depth"],
            "depth": {"rows_per_source": 2},
            "jobs": {"where": "slurm", "poll_seconds": 0.5},
        },
        cluster={
            "gpus_per_node": 0,
            "ranks_per_node": 1,
            "commands_before": ["export OMP_NUM_THREADS=1", f"export TMPDIR={cluster.temporary}"],
        },
    )


@pytest.fixture
def run(tokenized, tmp_path, monkeypatch) -> RunFolder:
    """A run without checkpoints, in a folder of runs of its own."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return copy_run(tokenized, tmp_path / "runs")


@pytest.fixture
def start_watcher(cluster):
    """A function that starts a watcher on a run."""
    project = str(Path(__file__).parents[2])
    variables = {"SLURM_CONF": cluster.environment["SLURM_CONF"], "PYTHONPATH": project}
    return lambda run, *options: start(run, "watch", *options, **variables)


def slurm_jobs(cluster, checkpoint: str = "") -> list[dict[str, str]]:
    """All that were asked for, oldest first."""
    found = [job for job in cluster.jobs() if f"-eval-{checkpoint}" in job["JobName"]]
    return sorted(found, key=lambda job: int(job["JobId"]))


def wait_until(happened, cluster, seconds: float = 120):
    deadline = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < deadline, cluster.logs()
        time.sleep(0.1)
    return found


def test_killed_watchers_lose_and_double_no_job(cluster, run, start_watcher):
    seed = int(os.environ.get("CHAOS_SEED") or random.randrange(1 << 30))
    print("CHAOS_SEED", seed)
    generator = random.Random(seed)
    model = make_model(run)
    for step in (0, 5, 10):
        write_checkpoint(run, model, step)
    assert sync(run)  # as a training does: else one of the jobs makes MLflow's run, and others tell theirs later
    watcher, written = start_watcher(run), {}
    try:
        for number in range(KILLS):
            if number == 0:  # with all of its jobs in Slurm's queue
                wait_until(lambda: len(slurm_jobs(cluster)) == 3, cluster)
            else:
                note_results(run, written, generator.uniform(1, LONGEST_SECONDS))
            assert watcher.poll() is None, finish(watcher)
            watcher.kill()
            finish(watcher)
            if number == 1:
                write_checkpoint(run, model, 20)
            watcher = start_watcher(run)
        while watcher.poll() is None:
            note_results(run, written, 0.2)
    finally:
        code, said = finish(watcher)
    assert code == 0, said
    owed = [(0, "validation"), (5, "validation"), (10, "validation"), (20, "depth"), (20, "validation")]
    assert judged(run) == {(f"step-{step:08d}", suite) for step, suite in owed}
    assert in_mlflow(run) == [(step, suite, "FINISHED") for step, suite in owed]
    assert {path: len(times) for path, times in written.items()} == dict.fromkeys(written, 1), "written once each"
    assert len(written) == len(owed) and not leftovers(run)
    assert not events_of(run, "evaluation_failed"), "a watcher that is killed is no failure of what it judged"
    known = [json.loads(path.read_text()) for path in (run.path / "evaluation" / "jobs").glob("step-*/job.json")]
    assert {one["state"] for job in known for one in job["suites"].values()} == {"done"}
    assert {job.state for job in status_of(run).jobs} == {"done"}
    jobs = slurm_jobs(cluster)
    assert {job["JobState"] for job in jobs} == {"COMPLETED"}, [(job["JobName"], job["JobState"]) for job in jobs]
    for checkpoint in ("00000000", "00000005", "00000010"):
        assert len(slurm_jobs(cluster, checkpoint)) == 1, "those that were asked for are found again"


def test_a_job_that_was_cancelled_while_no_watcher_looked_is_asked_for_again(cluster, run, start_watcher):
    """It counts as a try: an operator who cancels it again and again is heard."""
    write_checkpoint(run, make_model(run), 15)
    watcher = start_watcher(run, "--once")
    try:
        (job,) = wait_until(lambda: slurm_jobs(cluster, "00000015"), cluster)
        watcher.kill()
        finish(watcher)
        wait_until(lambda: list(run.logs.glob("slurm-eval-00000015-1-*.out")), cluster)
        cluster.run("scancel", job["JobId"])
        cluster.wait_for_job(job["JobId"], "CANCELLED", "COMPLETED", "FAILED")
        watcher = start_watcher(run, "--once")
    finally:
        code, said = finish(watcher)
    print(said)
    assert code == 0, said
    assert judged(run) == {("step-00000015", "validation")}
    (failed,) = events_of(run, "evaluation_failed")
    assert (failed["tries"], failed["given_up"]) == (1, False)
    first, second = slurm_jobs(cluster, "00000015")
    assert (first["JobState"], second["JobState"]) == ("CANCELLED", "COMPLETED"), said
