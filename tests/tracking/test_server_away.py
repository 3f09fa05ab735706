"""A real MLflow server that is not there, comes late, and goes away: training loses nothing and logs nothing twice."""

import json
import os
import signal
import subprocess

import pytest
from mlflow.tracking import MlflowClient

from pipeline.recipe_reader import parse_recipe
from pipeline.run_folder import RunFolder
from pipeline.tracking import Tracker, sync, tracker
from tests.tracking.mlflow_server import free_port, mlflow_server, until

pytestmark = pytest.mark.slow


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


def test_a_training_whose_server_hangs_for_a_while_and_then_is_gone_for_good(
    runs, recipe, empty_store, tmp_path, monkeypatch
):
    port, store = free_port(), tmp_path / "served.db"
    store.write_bytes(empty_store.read_bytes())
    recipe["train"]["phases"][0]["steps"] = 100_000
    recipe["train"]["checkpoint_every_steps"] = 100_000
    folder = RunFolder(runs.root, parse_recipe(recipe, "test"))
    of_mlflow = {
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    }
    client = MlflowClient(of_mlflow["MLFLOW_TRACKING_URI"])

    def events():
        lines = folder.events_file.read_text().splitlines() if folder.events_file.exists() else []
        return [kind for line in lines if (kind := json.loads(line)["kind"]).startswith("tracking_")]

    def run_id():
        return json.loads((folder.path / "mlflow.json").read_text())["runs"][-1]["run_id"]

    def sent():
        return [metric.step for metric in client.get_metric_history(run_id(), "train/loss")]

    output = tmp_path / "output"
    with open(output, "w") as file:
        training = subprocess.Popen(
            runs.command("train", recipe), env=runs.environment() | of_mlflow, stdout=file, stderr=file
        )
    try:
        with mlflow_server(port, store, tmp_path / "artifacts") as server:
            until(lambda: (folder.path / "mlflow.json").exists() and run_id() and sent(), 100, "steps arrive")
            os.killpg(server.pid, signal.SIGSTOP)
            until(lambda: events() == ["tracking_away"], 30, "a server that hangs is told")
            steps = len(runs.metrics(recipe["name"]))
            os.killpg(server.pid, signal.SIGCONT)
            until(lambda: events() == ["tracking_away", "tracking_back"], 60, "it is told that it is back")
            assert len(runs.metrics(recipe["name"])) > steps, "the training waited for the server"
            assert sent() == list(range(1, len(sent()) + 1)) and len(sent()) > steps
        until(lambda: events()[2:] == ["tracking_away"], 30, "a server that is gone is told")
        (folder.path / "STOP").touch()
        assert training.wait(60) == 0, output.read_text()
    finally:
        training.kill()
        training.wait()
    told = output.read_text()
    # Of the last two one is the command's, which tries once more when its ranks have ended.
    assert told.count("does not take the metrics") == 3 and told.count("MLflow is back") == 1
    assert "MLflow has not got all metrics yet: they are in metrics.jsonl, the run's next stage sends them" in told
    lines = runs.metrics(recipe["name"])
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    for name, value in of_mlflow.items():
        monkeypatch.setenv(name, value)
    with mlflow_server(port, store, tmp_path / "artifacts"):
        assert len(sent()) < len(lines)
        assert sync(folder)  # as the next stage does
        (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
        assert (run.info.run_id, run.info.status) == (run_id(), "KILLED")
        for name in ("train/loss", "depth/mean"):
            history = client.get_metric_history(run_id(), name)
            assert [(metric.step, metric.value) for metric in history] == [(line["step"], line[name]) for line in lines]
