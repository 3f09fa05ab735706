"""The samples of several nodes in MLflow: each once, at its time, whatever is killed, refused or replayed."""

import json
import os
import signal
import subprocess
import sys

import pytest
from mlflow.tracking import MlflowClient

from pipeline.tracking import Tracker, sync
from pipeline.tracking.metrics_lines import read_metrics
from pipeline.tracking.server import tracking_uri
from pipeline.tracking.system_metrics import HOST_TAG, SAMPLE_METRIC
from tests.tracking.mlflow_server import free_port, mlflow_server, until


def write_samples(folder, node: int, *samples: int, host="a", metrics=2) -> None:
    path = folder.system_file(node)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        for sample in samples:
            values = {f"m{i}": float(100 * node + sample) for i in range(metrics)}
            file.write(json.dumps({"step": sample, "time": 1000.0 + sample, "host": host, **values}) + "\n")


def history(folder, run_id, name, uri=None):
    client = MlflowClient(uri or tracking_uri(folder.root))
    return [(found.step, found.timestamp, found.value) for found in client.get_metric_history(run_id, name)]


def tracked(folder, manifest, attempt=1):
    follower = Tracker(folder, manifest, attempt)
    follower.start()
    follower.finish("FINISHED", wait_seconds=60)
    assert follower.run_id is not None
    return follower.run_id


def events_of(folder):
    text = folder.events_file.read_text() if folder.events_file.exists() else ""
    return [json.loads(line)["kind"] for line in text.splitlines()]


def test_samples_of_all_nodes_stand_under_their_names_at_their_times(folder, manifest, take_steps):
    take_steps(1)
    write_samples(folder, 0, 1, 2)
    write_samples(folder, 12, 1, host="b")
    run_id = tracked(folder, manifest)
    assert history(folder, run_id, "system/node_0/m1") == [(1, 1001000, 1.0), (2, 1002000, 2.0)]
    assert history(folder, run_id, "system/node_12/m0") == [(1, 1001000, 1201.0)]
    tags = MlflowClient(tracking_uri(folder.root)).get_run(run_id).data.tags
    assert (tags[f"{HOST_TAG}node_0"], tags[f"{HOST_TAG}node_12"]) == ("a", "b")
    # A later attempt has another host there; what was sent is not sent again, by nobody.
    write_samples(folder, 0, 3, host="c")
    assert tracked(folder, manifest, attempt=2) == run_id
    write_samples(folder, 12, 2, 3)
    for _ in range(2):
        assert sync(folder)
    assert [step for step, *_ in history(folder, run_id, "system/node_0/m0")] == [1, 2, 3]
    assert [step for step, *_ in history(folder, run_id, "system/node_12/m0")] == [1, 2, 3]
    assert MlflowClient(tracking_uri(folder.root)).get_run(run_id).data.tags[f"{HOST_TAG}node_0"] == "c"
    assert events_of(folder) == []


def test_more_samples_than_one_request_takes(folder, manifest):
    write_samples(folder, 0, *range(1, 41), metrics=60)
    run_id = tracked(folder, manifest)
    for name in ("m0", "m59", SAMPLE_METRIC):
        assert [step for step, *_ in history(folder, run_id, f"system/node_0/{name}")] == list(range(1, 41))


def test_a_damaged_file_is_told_and_holds_up_nothing_else(folder, manifest, take_steps, capsys):
    take_steps(1)
    write_samples(folder, 0, 1)
    with open(folder.system_file(0), "a") as file:
        file.write("no sample\n")
    write_samples(folder, 1, 1, 2)
    run_id = tracked(folder, manifest)
    assert [step for step, *_ in history(folder, run_id, "system/node_1/m0")] == [1, 2]
    assert [step for step, *_ in history(folder, run_id, "train/loss")] == [1]
    assert MlflowClient(tracking_uri(folder.root)).get_run(run_id).info.status == "FINISHED"
    assert events_of(folder) == ["system_metrics_damaged"]
    told = capsys.readouterr().out.replace("\n", "")
    assert "system-node-0000.jsonl holds no step's metrics at byte" in told and "system metrics of node_0" in told


NODE = """
import sys, time
from pathlib import Path
from pipeline.recipe_reader import read_recipe
from pipeline.run_folder import RunFolder
from pipeline.tracking.node_monitor import NodeMonitor
folder = RunFolder(Path(sys.argv[1]), read_recipe("quickstart", ["name=tracked"]))
with NodeMonitor(folder, int(sys.argv[2]), 0.2):
    time.sleep(600)
"""
TRAINING = """
import sys, time
from pathlib import Path
from pipeline.data.manifest import manifest_hash, read_manifest
from pipeline.recipe_reader import read_recipe
from pipeline.run_folder import RunFolder
from pipeline.tracking import Tracker, tracker
tracker.POLL_SECONDS = 0.05
tracker.LONGEST_PAUSE_SECONDS = 0.2
folder = RunFolder(Path(sys.argv[1]), read_recipe("quickstart", ["name=tracked"]))
Tracker(folder, manifest_hash(read_manifest(folder.shards)), 1).start()
time.sleep(600)
"""


@pytest.mark.slow
def test_two_nodes_and_their_tracker_killed_and_resumed_and_a_server_that_comes_late(
    folder, manifest, take_steps, empty_store, tmp_path, monkeypatch
):
    port = free_port()
    store = tmp_path / "served.db"
    store.write_bytes(empty_store.read_bytes())
    uri = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    take_steps(1)

    def started(script, *arguments):
        return subprocess.Popen([sys.executable, "-c", script, str(folder.root), *arguments])

    def measured(node):
        return [(line.step, line.time_ms) for line in read_metrics(folder.system_file(node))]

    def last_sent():
        client = MlflowClient(uri)
        runs = client.search_runs([found.experiment_id for found in client.search_experiments()])
        return [runs[0].data.metrics.get(f"system/node_{node}/{SAMPLE_METRIC}", 0) if runs else 0 for node in (0, 1)]

    def kill(processes):
        for process in processes:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()

    processes = [started(NODE, "0"), started(NODE, "1"), started(TRAINING)]
    try:
        until(lambda: min(len(measured(0)), len(measured(1))) >= 5, 60, "nodes are measured without a server")
        with mlflow_server(port, store, tmp_path / "artifacts"):
            until(lambda: min(last_sent()) >= 5, 60, "both nodes are followed")
            kill(processes)
            killed_at = [len(measured(node)) for node in (0, 1)]
            processes = [started(NODE, "0"), started(NODE, "1")]
            until(lambda: all(len(measured(node)) > killed_at[node] + 3 for node in (0, 1)), 60, "both go on")
            kill(processes)
            processes = []
            run_id = tracked(folder, manifest, attempt=2)
            for node in (0, 1):
                written = measured(node)
                assert [step for step, _ in written] == list(range(1, len(written) + 1))
                for name in ("cpu_utilization_percentage", SAMPLE_METRIC):
                    sent = history(folder, run_id, f"system/node_{node}/{name}", uri)
                    assert [(step, time_ms) for step, time_ms, _ in sent] == written
            assert [step for step, *_ in history(folder, run_id, "train/loss", uri)] == [1]
    finally:
        kill(processes)
