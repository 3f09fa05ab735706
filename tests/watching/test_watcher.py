"""`adaponder watch` through the real command line, on real checkpoints."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest

from pipeline.checkpoint_lock import Removal, remove_unless_read
from pipeline.run_status import status_of
from tests.evaluation.tiny_run import write_checkpoint
from tests.watching.watchers import events_of, finish, in_mlflow, judged, start_watcher

pytestmark = pytest.mark.slow


def wait_until(happened, process: subprocess.Popen, seconds: float = 300):
    deadline = time.monotonic() + seconds
    while not (found := happened()):
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def test_each_checkpoint_is_judged_once_by_the_schedule_until_the_last(run, model):
    """Checkpoints that appear while it watches; the second one and the last get the full suite."""
    write_checkpoint(run, model, 0)
    write_checkpoint(run, model, 10)
    watcher = start_watcher(run)
    try:
        wait_until(lambda: ("step-00000010", "depth") in judged(run), watcher)
        write_checkpoint(run, model, 15)
        wait_until(lambda: ("step-00000015", "validation") in judged(run), watcher)
        time.sleep(1)
        assert watcher.poll() is None, "the last checkpoint is still to come"
        write_checkpoint(run, model, 20)
    finally:
        code, said = finish(watcher)
    assert code == 0, said
    expected = [(0, "validation"), (10, "validation"), (10, "depth"), (15, "validation"), (20, "depth")]
    expected = sorted([*expected, (20, "validation")])
    assert judged(run) == {(f"step-{step:08d}", suite) for step, suite in expected}
    assert in_mlflow(run) == [(step, suite, "FINISHED") for step, suite in expected]
    assert "watch: step-00000010 begun: validation, depth" in said
    assert "watch: step-00000020 done in" in said
    assert "watch: 6 evaluations stand" in said
    begun = [(event["checkpoint"], event["suites"]) for event in events_of(run, "evaluation_begun")]
    assert [name for name, _ in begun] == sorted({name for name, _ in begun}), "each once, in their order"
    jobs = status_of(run).jobs
    assert {(job.checkpoint, job.suite, job.state) for job in jobs} == {(*pair, "done") for pair in judged(run)}

    before = {path: path.stat().st_mtime_ns for path in (run.path / "evaluation").rglob("metrics.json")}
    code, said = finish(start_watcher(run))
    assert code == 0 and "begun" not in said, said
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_suite_that_fails_is_tried_up_to_the_limit_told_and_holds_up_no_other(run, model):
    """The folder of validation's results cannot be made."""
    write_checkpoint(run, model, 20)
    blocked = run.evaluation("step-00000020", "validation.partial")
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where a folder has to be")
    code, said = finish(start_watcher(run, "--set", "evaluate.jobs.tries=2"))
    assert code == 1, said
    assert judged(run) == {("step-00000020", "depth")}
    assert "1 of 2 evaluations were given up, first validation of step-00000020: evaluate: " in said
    assert [(event["tries"], event["given_up"]) for event in events_of(run, "evaluation_failed")] == [
        (1, False),
        (2, True),
    ]
    (failed,) = [job for job in status_of(run).jobs if job.state == "failed"]
    assert (failed.suite, failed.tries) == ("validation", 2)
    assert failed.error is not None and "validation.partial" in failed.error
    shown = subprocess.run(
        [sys.executable, "-m", "pipeline", "status", str(run.path), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert {(job["suite"], job["state"]) for job in json.loads(shown.stdout)["jobs"]} == {
        ("validation", "failed"),
        ("depth", "done"),
    }
    code, said = finish(start_watcher(run, "--set", "evaluate.jobs.tries=2"))
    assert code == 1 and "begun" not in said, "given up stays given up"
    blocked.unlink()
    code, said = finish(start_watcher(run, "--retry"))
    assert code == 0, said
    assert in_mlflow(run) == [(20, "depth", "FINISHED"), (20, "validation", "FINISHED")]


def test_it_ends_on_signals_with_its_child_and_goes_on_when_started_again(run, model):
    for step in (5, 10, 20):
        write_checkpoint(run, model, step)
    for number, expected in ((signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)):
        begun = len(events_of(run, "evaluation_begun"))
        watcher = start_watcher(run)
        wait_until(lambda begun=begun: len(events_of(run, "evaluation_begun")) > begun, watcher)
        time.sleep(1)
        watcher.send_signal(number)
        code, said = finish(watcher, timeout=40)
        assert code == expected, said
        assert "the same command continues" in said
        alive = subprocess.run(["pgrep", "-f", f"pipeline evaluate.*{run.path}"], capture_output=True, check=False)
        assert alive.returncode == 1, alive.stdout
        assert all(job.holder is None for job in status_of(run).jobs)
    code, said = finish(start_watcher(run))
    assert code == 0, said
    assert [entry[:2] for entry in in_mlflow(run)] == [
        *((5, "validation"), (10, "depth"), (10, "validation"), (20, "depth"), (20, "validation")),
    ]
    assert not events_of(run, "evaluation_failed"), "what was stopped has not failed"


def test_once_judges_what_is_there_and_ends(run, model):
    write_checkpoint(run, model, 5)
    code, said = finish(start_watcher(run, "--once"))
    assert code == 0, said
    assert judged(run) == {("step-00000005", "validation")}


def test_a_checkpoint_that_is_judged_or_waits_for_it_is_kept(run, model):
    first, second = (write_checkpoint(run, model, step) for step in (5, 10))
    watcher = start_watcher(run)
    try:
        wait_until(lambda: events_of(run, "evaluation_begun"), watcher)
        assert remove_unless_read(first.path) is Removal.READ
        assert remove_unless_read(second.path) is Removal.READ
        wait_until(lambda: ("step-00000010", "depth") in judged(run) and len(in_mlflow(run)) == 3, watcher)
        wait_until(lambda: remove_unless_read(first.path) is Removal.DONE, watcher)
    finally:
        watcher.send_signal(signal.SIGTERM)
        code, said = finish(watcher)
    assert code == 75, said


def test_results_that_mlflow_did_not_take_are_sent_later_and_not_judged_again(run, model):
    write_checkpoint(run, model, 20)
    code, said = finish(start_watcher(run, "--once"))
    assert code == 0, said
    for told in (run.path / "evaluation").glob("step-*/*.told"):
        told.unlink()
    store = run.root / "mlflow.db"
    store.rename(store.with_suffix(".kept"))
    (run.path / "mlflow.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in (run.path / "evaluation").rglob("metrics.json")}
    code, said = finish(start_watcher(run))
    assert code == 0, said
    assert in_mlflow(run) == [(20, "depth", "FINISHED"), (20, "validation", "FINISHED")]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_broken_recipe_is_one_line_before_anything_is_judged(run):
    for option, told in (
        ("evaluate.full_suites=[lambada]", "evaluate.full_suites"),
        ("evaluate.jobs.where=kubernetes", "cluster.kubernetes.image is empty"),
        ("evaluate.jobs.tries=0", "evaluate.jobs.tries"),
    ):
        code, said = finish(start_watcher(run, "--set", option))
        assert code == 2, said
        assert told in said and said.count("\n") == 1
    assert not (run.path / "evaluation").exists()
