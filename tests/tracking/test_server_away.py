"""A real MLflow server that is not there, comes late, and goes away: training loses nothing and logs nothing twice."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from mlflow.tracking import MlflowClient

from pipeline.tracking import Tracker, tracker

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def mlflow_server(port, store, artifacts):
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    stored = ["--backend-store-uri", f"sqlite:///{store}", "--artifacts-destination", str(artifacts)]
    with open(store.with_suffix(".log"), "w") as log:
        process = subprocess.Popen([*command, *stored], stdout=log, stderr=log, start_new_session=True)
    try:
        until(lambda: answers(port), 60, "the MLflow server answers")
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(port) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def until(holds, seconds, what):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.1)


def test_a_server_that_comes_late_and_goes_away(
    folder, manifest, take_steps, empty_store, tmp_path, monkeypatch, capfd
):
    port = free_port()
    store = tmp_path / "served.db"
    store.write_bytes(empty_store.read_bytes())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ada:s3cret@127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(tracker, "POLL_SECONDS", 0.2)
    monkeypatch.setattr(tracker, "LONGEST_PAUSE_SECONDS", 1.0)

    def events():
        text = folder.events_file.read_text() if folder.events_file.exists() else ""
        return [json.loads(line)["kind"] for line in text.splitlines()]

    follower = Tracker(folder, manifest, 1)
    follower.start()
    take_steps(1, 2)
    until(lambda: events() == ["tracking_away"], 60, "the first failure is told")
    with mlflow_server(port, store, tmp_path / "artifacts"):
        until(lambda: events() == ["tracking_away", "tracking_back"], 60, "the server's coming is told")
        take_steps(3)
    take_steps(4)
    until(lambda: len(events()) == 3, 60, "the second failure is told")
    with mlflow_server(port, store, tmp_path / "artifacts"):
        take_steps(5)
        follower.finish("FINISHED", wait_seconds=60)
        client = MlflowClient(f"http://127.0.0.1:{port}")
        (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
        assert run.info.run_id == follower.run_id
        assert run.info.status == "FINISHED"
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss")]
        assert steps == [1, 2, 3, 4, 5]
        assert [item.path for item in client.list_artifacts(run.info.run_id, "recipe")] == ["recipe/attempt-1.yaml"]
    assert events() == ["tracking_away", "tracking_back"] * 2
    told = capfd.readouterr()
    assert "s3cret" not in told.out + told.err + folder.events_file.read_text()
    assert told.err == ""
    assert told.out.count("does not take the metrics") == 2
