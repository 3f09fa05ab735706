"""What an evaluation has read stands among its run's inputs, in a sqlite store and on a real server."""

from __future__ import annotations

import json
import urllib.request

import pytest
import torch
from mlflow.tracking import MlflowClient

from pipeline.data.manifest import manifest_hash, read_manifest
from pipeline.evaluation.stage import evaluate_suites
from pipeline.tracking import tracking_uri
from tests.evaluation.test_stage import with_recipe
from tests.evaluation.tiny_run import make_model, make_run, write_checkpoint
from tests.tracking.test_server_away import free_port, mlflow_server
from tokenization.splits import validation_key

SUITES = ["validation", "windows", "depth", "speed"]
READ = {
    "validation": {"adaponder.rows_per_source": "2", "adaponder.rows": "4"},
    "windows": {"adaponder.rows_per_source": "3", "adaponder.rows": "6"},
    "depth": {"adaponder.rows_per_source": "2", "adaponder.rows": "4"},
    "speed": {"adaponder.rows": "1", "adaponder.set": validation_key("more words")},
}


@pytest.fixture(scope="module")
def own_run(tmp_path_factory):
    """A run whose store no other test touches."""
    torch.set_num_threads(1)
    run = make_run(tmp_path_factory.mktemp("inputs"))
    write_checkpoint(run, make_model(run))
    speed = {"rows": 1, "prompt_tokens": 8, "new_tokens": 2, "rounds": 3}
    few = {"rows_per_source": 2}
    return with_recipe(run, rows_per_source=2, windows={"rows_per_source": 3}, depth=few, speed=speed)


def told(inputs: list[dict], run) -> None:
    """The one data set of an evaluation: the training's shards, for validation, and so many rows."""
    (read,) = inputs
    assert read["dataset"]["name"] == "tiny"
    assert read["dataset"]["digest"] == manifest_hash(read_manifest(run.shards))[:36]
    profile = json.loads(read["dataset"]["profile"])
    assert profile["splits"]["validation-words"]["rows"] == read_manifest(run.shards).splits["validation-words"].rows
    assert json.loads(read["dataset"]["source"]) == {"uri": run.shards.resolve().as_uri()}


def test_the_rows_that_a_suite_read_are_an_input_once(own_run):
    for _ in range(2):
        evaluate_suites(own_run.recipe, own_run, "latest", SUITES)
    client = MlflowClient(tracking_uri(own_run.root))
    runs = [run for one in client.search_experiments() for run in client.search_runs([one.experiment_id])]
    children = {run.data.tags["adaponder.suite"]: run for run in runs if "adaponder.suite" in run.data.tags}
    assert set(children) == set(SUITES) and len(runs) == len(SUITES) + 1
    (training,) = [run for run in runs if "adaponder.suite" not in run.data.tags]
    assert training.inputs is not None
    of_training = training.inputs.dataset_inputs[0].dataset
    for suite, child in children.items():
        assert child.inputs is not None
        told([{"dataset": dict(each.dataset)} for each in child.inputs.dataset_inputs], own_run)
        (read,) = child.inputs.dataset_inputs
        assert read.dataset.digest == of_training.digest, "the same data set"
        tags = {tag.key: tag.value for tag in read.tags}
        assert tags == {"mlflow.data.context": "validation", **READ[suite]}


@pytest.mark.slow
def test_a_server_has_the_same_through_its_rest_api(own_run, tmp_path, monkeypatch):
    port = free_port()
    with mlflow_server(port, tmp_path / "served.db", tmp_path / "artifacts"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        for _ in range(2):
            evaluate_suites(own_run.recipe, own_run, "latest", SUITES)

        def ask(what: str, **content) -> dict:
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/api/2.0/mlflow/{what}",
                json.dumps(content).encode(),
                {"Content-Type": "application/json"},
            )
            return json.load(urllib.request.urlopen(request, timeout=20))

        experiments = [one["experiment_id"] for one in ask("experiments/search", max_results=10)["experiments"]]
        runs = ask("runs/search", experiment_ids=experiments)["runs"]
    found = {}
    for run in runs:
        tags = {tag["key"]: tag["value"] for tag in run["data"].get("tags", [])}
        if "adaponder.suite" in tags:
            found[tags["adaponder.suite"]] = run["inputs"]["dataset_inputs"]
    assert set(found) == set(SUITES) and len(runs) == len(SUITES) + 1
    for suite, inputs in found.items():
        told(inputs, own_run)
        tags = {tag["key"]: tag["value"] for tag in inputs[0]["tags"]}
        assert tags == {"mlflow.data.context": "validation", **READ[suite]}
