"""`adaponder run`, from text to a released checkpoint, and once more."""

from __future__ import annotations

import json
import subprocess
import sys

import mlflow
import pytest

from tests.conftest import tiny_recipe

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recipe(text_folder) -> dict:
    return tiny_recipe("whole", text_folder)


@pytest.fixture(scope="module")
def first(runs, recipe) -> subprocess.CompletedProcess:
    done = runs.adaponder("run", recipe, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_it_ends_with_what_came_of_it(first, runs, recipe):
    folder = runs.root / recipe["name"]
    for part in (
        "whole: validation",
        "step-00000000",
        "step-00000020",
        "loss, nats a token",
        f"release      {folder / 'release'}",
        f"report       {folder / 'evaluation' / 'report.html'}",
        f"mlflow ui --backend-store-uri sqlite:///{runs.root / 'mlflow.db'}",
    ):
        assert part in first.stdout
    before, after = (
        json.loads((folder / f"evaluation/{step}/validation/metrics.json").read_text())["overall"]["loss"]
        for step in ("step-00000000", "step-00000020")
    )
    assert after < before - 1.0


def test_the_same_command_again_has_nothing_to_do(first, runs, recipe):
    folder = runs.root / recipe["name"]
    kept = {path: path.stat().st_mtime_ns for path in sorted((folder / "checkpoints").rglob("*"))}
    again = runs.adaponder("run", recipe, timeout=200)
    assert again.returncode == 0, again.stdout + again.stderr
    # tokenize, train, two evaluations and their checkpoints' reports, release, the run's report
    assert again.stdout.count("nothing to do") == 8
    assert {path: path.stat().st_mtime_ns for path in sorted((folder / "checkpoints").rglob("*"))} == kept


def test_mlflow_holds_one_training_run_with_two_evaluations(first, runs, recipe):
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{runs.root / 'mlflow.db'}")
    (experiment,) = [found for found in client.search_experiments() if found.name == "adaponder"]
    children = "mlflow.parentRunId"
    noted = json.loads((runs.root / recipe["name"] / "mlflow.json").read_text())
    training = client.get_run(noted["runs"][-1]["run_id"])
    assert training.info.status == "FINISHED"
    assert training.data.params["train.micro_batch"] == "2"
    history = client.get_metric_history(training.info.run_id, "train/ce_loss")
    assert [metric.step for metric in history] == list(range(1, 21))
    runs_found = client.search_runs([experiment.experiment_id], max_results=100)
    evaluations = [run for run in runs_found if run.data.tags.get(children) == training.info.run_id]
    assert len(evaluations) == 2
    assert all("eval/validation/loss" in run.data.metrics for run in evaluations)
    assert training.inputs is not None
    assert [found.dataset.name for found in training.inputs.dataset_inputs] == [recipe["name"]]


def test_the_release_generates_where_only_transformers_is(first, runs, recipe, tmp_path):
    script = (
        "import sys\n"
        "sys.path[:] = [path for path in sys.path if path]\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "ids = tokenizer('token passes gate', return_tensors='pt').input_ids\n"
        "print(tokenizer.decode(model.generate(ids, max_new_tokens=5, do_sample=False)[0]))\n"
        "print(model(ids).depths.tolist(), 'pipeline' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(runs.root / recipe["name"] / "release")],
        env={**runs.environment(), "HF_HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("token passes gate")
    assert done.stdout.strip().endswith("False")
