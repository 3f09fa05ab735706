"""One MLflow run a run folder, whatever is killed, resumed or moved in between."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipeline.errors import UserError
from pipeline.run_folder import RunFolder
from pipeline.tracking import Tracker, sync
from pipeline.tracking.failures import Failure, failure_of
from pipeline.tracking.identity import EndStatus, only_writer, read_identity, write_identity
from pipeline.tracking.server import tracking_uri


def client_of(folder) -> MlflowClient:
    return MlflowClient(tracking_uri(folder.root))


def runs_of(folder) -> list[Any]:
    client = client_of(folder)
    return client.search_runs([e.experiment_id for e in client.search_experiments()])


def history(folder, run_id, name="train/loss"):
    return [(metric.step, metric.value) for metric in client_of(folder).get_metric_history(run_id, name)]


def events_of(folder):
    if not folder.events_file.exists():
        return []
    return [json.loads(line)["kind"] for line in folder.events_file.read_text().splitlines()]


def track(folder, manifest, attempt=1, status: EndStatus = "FINISHED") -> str:
    """A training that ends at once; returns its MLflow run's id."""
    tracker = Tracker(folder, manifest, attempt)
    tracker.start()
    tracker.finish(status, wait_seconds=60)
    assert tracker.run_id is not None
    return tracker.run_id


def track_in_vain(folder, manifest) -> None:
    tracker = Tracker(folder, manifest, 1)
    tracker.start()
    tracker.finish("FINISHED", wait_seconds=2)
    assert "tracking_incomplete" in events_of(folder)


def test_a_finished_training_stands_in_mlflow_with_all_that_made_it(folder, manifest, take_steps):
    take_steps(1, 2, 3)
    run_id = track(folder, manifest)
    (run,) = runs_of(folder)
    noted = read_identity(folder)
    assert noted is not None
    assert run.info.run_id == run_id == noted.run_id
    assert run.info.status == "FINISHED"
    assert history(folder, run.info.run_id) == [(1, 9.0), (2, 8.0), (3, 7.0)]
    assert run.data.params["train.phases.1.ponder_weight"] == str(folder.recipe.train.phases[1].ponder_weight)
    assert run.data.params["model.scale_embeds"] == "true"
    assert run.data.tags["adaponder.recipe_hash"] == folder.recipe.hash()
    assert run.data.tags["adaponder.manifest_hash"] == manifest
    assert run.data.tags["version.torch"].startswith("2.")
    (entry,) = run.inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("tracked", manifest[:36])
    assert json.loads(entry.dataset.profile)["splits"]["train"]["tokens"] == 900
    assert [(tag.key, tag.value) for tag in entry.tags] == [("mlflow.data.context", "training")]
    artifacts = [item.path for item in client_of(folder).list_artifacts(run.info.run_id, "recipe")]
    assert artifacts == ["recipe/attempt-1.yaml"]
    assert (folder.root / "mlartifacts").is_dir()
    assert not Path("mlruns").exists()
    assert events_of(folder) == []


def test_a_resumed_training_goes_on_in_the_same_run_and_logs_no_step_twice(make_folder, folder, manifest, take_steps):
    take_steps(1, 2, 3, 4)
    track(folder, manifest, attempt=1, status="FAILED")
    # Training fell back to its checkpoint at step 2 and took steps 3 and 4 again.
    folder.metrics_file.unlink()
    take_steps(1, 2, 3, 4, 5)
    changed = make_folder("train.optimizer.peak_lr=1.0e-4")
    track(changed, manifest, attempt=2)
    (run,) = runs_of(folder)
    assert run.info.status == "FINISHED"
    assert history(folder, run.info.run_id) == [(step, 10.0 - step) for step in (1, 2, 3, 4, 5)]
    assert run.data.tags["adaponder.attempt"] == "2"
    assert run.data.params["train.optimizer.peak_lr"] == str(folder.recipe.train.optimizer.peak_lr)
    assert json.loads(run.data.tags["recipe.changed.attempt-2"]) == {"train.optimizer.peak_lr": "0.0001"}


def test_why_an_attempt_was_ended_stands_in_a_tag(folder, manifest, take_steps):
    take_steps(1)
    tracker = Tracker(folder, manifest, 3)
    tracker.start()
    tracker.finish("KILLED", 60, "stopped at step 1 because of SIGTERM on rank 1")
    (run,) = runs_of(folder)
    assert run.info.status == "KILLED"
    assert run.data.tags["adaponder.ended.attempt-3"] == "stopped at step 1 because of SIGTERM on rank 1"


def test_steps_written_while_it_runs_arrive_before_the_end(folder, manifest, take_steps):
    tracker = Tracker(folder, manifest, 1)
    tracker.start()
    for step in range(1, 4):
        take_steps(step)
        time.sleep(0.1)
    tracker.finish("FINISHED", wait_seconds=60)
    assert [step for step, _ in history(folder, tracker.run_id)] == [1, 2, 3]


def test_more_metrics_than_one_request_takes(folder, manifest):
    folder.metrics_file.write_text(
        json.dumps({"step": 1, "a": 1.0})
        + "\n"
        + json.dumps({"step": 2, **{f"gate (pass 1) @{i}": float(i) for i in range(1100)}})
        + "\n"
        + json.dumps({"step": 3, "a": float("nan")})
        + "\n"
    )
    run_id = track(folder, manifest)
    metrics = client_of(folder).get_run(run_id).data.metrics
    assert metrics["gate _pass 1_ _1099"] == 1099.0
    assert [step for step, _ in history(folder, run_id, "a")] == [1, 3]
    assert metrics["step"] == 3


def test_a_run_deleted_on_the_server_is_replaced_and_that_is_said(folder, manifest, take_steps):
    take_steps(1)
    first = track(folder, manifest)
    client_of(folder).delete_run(first)
    second = track(folder, manifest, attempt=2)
    assert second != first
    assert history(folder, second) == [(1, 9.0)]
    assert events_of(folder) == ["tracking_run_lost"]


def test_another_server_gets_a_run_of_its_own_and_that_is_said(
    folder, manifest, take_steps, empty_store, tmp_path, monkeypatch
):
    take_steps(1)
    first = track(folder, manifest)
    elsewhere = tmp_path / "elsewhere.db"
    elsewhere.write_bytes(empty_store.read_bytes())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{elsewhere}")
    second = track(folder, manifest, attempt=2)
    assert second != first
    assert history(folder, second) == [(1, 9.0)]
    assert events_of(folder) == ["tracking_moved"]
    assert not Path("mlruns").exists()
    # Back at the first, the run that is there goes on, and knows how training ended in between.
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    take_steps(2)
    assert sync(folder)
    (run,) = runs_of(folder)
    assert (run.info.run_id, run.info.status) == (first, "FINISHED")
    assert history(folder, first) == [(1, 9.0), (2, 8.0)]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{elsewhere}")
    assert sync(folder)
    assert [run.info.run_id for run in runs_of(folder)] == [second]
    assert events_of(folder) == ["tracking_moved"] * 3


def test_the_folder_of_all_runs_may_be_moved(folder, manifest, take_steps, tmp_path):
    take_steps(1)
    first = track(folder, manifest)
    folder.root.rename(tmp_path / "moved")
    moved = RunFolder(tmp_path / "moved", folder.recipe)
    assert sync(moved)
    assert [run.info.run_id for run in runs_of(moved)] == [first]
    assert events_of(moved) == []


def test_a_store_that_refuses_costs_training_nothing(folder, manifest, take_steps, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://ada:s3cret@127.0.0.1:9/mlflow")
    take_steps(1)
    tracker = Tracker(folder, manifest, 1)
    began = time.monotonic()
    tracker.start()
    tracker.finish("FINISHED", wait_seconds=2)
    assert time.monotonic() - began < 10
    assert tracker.run_id is None
    assert events_of(folder) == ["tracking_away", "tracking_incomplete"]
    told = capsys.readouterr()
    assert "s3cret" not in told.out + told.err + folder.events_file.read_text()
    # Later, with a store that works, another stage sends what was kept.
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert sync(folder)
    (run,) = runs_of(folder)
    assert history(folder, run.info.run_id) == [(1, 9.0)]


def test_a_later_stage_leaves_a_live_training_to_its_tracker(folder, manifest, take_steps):
    take_steps(1)
    with only_writer(folder) as lock:
        assert lock == "held"
        assert not sync(folder)
    assert runs_of(folder) == []
    assert sync(folder)
    assert [run.info.status for run in runs_of(folder)] == ["KILLED"]
    # Nor does it claim to have sent what it left to another, when there is an MLflow run already.
    take_steps(2)
    with only_writer(folder):
        assert not sync(folder)
    assert [step for step, _ in history(folder, runs_of(folder)[0].info.run_id)] == [1]


def test_training_waits_for_a_stage_that_is_sending(folder, manifest, take_steps):
    take_steps(1)
    patient = Tracker(folder, manifest, 1)
    with only_writer(folder):
        patient.start()
        patient.finish("FINISHED", wait_seconds=1)
    assert runs_of(folder) == []
    assert events_of(folder) == ["tracking_incomplete"]
    with only_writer(folder):
        patient = Tracker(folder, manifest, 2)
        patient.start()
        time.sleep(0.2)
    patient.finish("FINISHED", wait_seconds=60)
    (run,) = runs_of(folder)
    assert (run.info.run_id, run.info.status) == (patient.run_id, "FINISHED")
    with only_writer(folder) as lock:
        assert lock == "held"


def test_where_no_locks_are_training_goes_first(folder, manifest, take_steps, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    take_steps(1)
    live = Tracker(folder, manifest, 1)
    live.start()
    while live.run_id is None:
        time.sleep(0.05)
    assert not sync(folder)
    assert [run.info.status for run in runs_of(folder)] == ["RUNNING"]
    live.finish("FINISHED", wait_seconds=60)
    take_steps(2)
    assert sync(folder)
    assert history(folder, live.run_id) == [(1, 9.0), (2, 8.0)]


def test_a_training_that_ended_in_silence_was_killed(folder, manifest, take_steps):
    take_steps(1)
    run_id = track(folder, manifest)
    noted = read_identity(folder)
    assert noted is not None
    write_identity(folder, noted.model_copy(update={"attempt": 2, "status": None}))  # as attempt 2 does at its start
    client_of(folder).update_run(run_id, status="RUNNING")
    assert sync(folder)
    assert [run.info.status for run in runs_of(folder)] == ["KILLED"]


def test_the_server_is_not_blamed_for_what_is_not_its_own(folder, manifest, take_steps, capsys):
    folder.metrics_file.write_text("no metrics\n")
    track_in_vain(folder, manifest)
    told = capsys.readouterr().out.replace("\n", "")
    assert "metrics.jsonl holds no step's metrics at byte 0" in told
    assert "MLflow at" not in told
    assert "traceback" not in folder.events_file.read_text()
    folder.metrics_file.unlink()
    folder.metrics_file.write_bytes(b"")
    (folder.shards / "manifest.json").unlink()
    assert not sync(folder)
    told = capsys.readouterr().out.replace("\n", "")
    assert "manifest.json is missing" in told
    assert "MLflow at" not in told


def test_a_bug_is_told_with_its_traceback(folder):
    def send():
        secret = "postgresql://ada:s3cret@host/db"
        raise ZeroDivisionError(secret)

    def fail(error: Exception) -> Failure:
        return failure_of(error, "metrics", folder.root)

    with pytest.raises(ZeroDivisionError) as caught:
        send()
    bug = fail(caught.value)
    assert "MLflow does not get the metrics: ZeroDivisionError" in bug.message
    assert "in send" in bug.fields()["traceback"]
    assert fail(MlflowException("s3cret ada")).message.startswith("MLflow at sqlite:///")
    assert fail(ConnectionError("refused")).fields() == {}
    assert fail(UserError("ask for less")).message == "ask for less; MLflow does not get the metrics"


def test_sending_again_changes_nothing(folder, manifest, take_steps):
    take_steps(1, 2)
    track(folder, manifest)
    (before,) = runs_of(folder)
    assert sync(folder)
    (after,) = runs_of(folder)
    assert after.to_dictionary() == before.to_dictionary()
    assert history(folder, after.info.run_id) == [(1, 9.0), (2, 8.0)]


TRAINING = """
import sys, time
from pathlib import Path
from typing import Any
from pipeline.data.manifest import manifest_hash, read_manifest
from pipeline.recipe_reader import read_recipe
from pipeline.run_folder import RunFolder
from pipeline.tracking import Tracker
folder = RunFolder(Path(sys.argv[1]), read_recipe("quickstart", ["name=tracked"]))
tracker = Tracker(folder, manifest_hash(read_manifest(folder.shards)), 1)
tracker.start()
while tracker.run_id is None:
    time.sleep(0.05)
print("tracked", flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_kill_minus_nine_and_resume_leave_one_run_with_every_step_once(folder, manifest, take_steps):
    take_steps(1, 2)
    child = subprocess.Popen([sys.executable, "-c", TRAINING, str(folder.root)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "tracked\n"
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    take_steps(3)
    track(folder, manifest, attempt=2)
    (run,) = runs_of(folder)
    assert run.info.status == "FINISHED"
    assert [step for step, _ in history(folder, run.info.run_id)] == [1, 2, 3]
