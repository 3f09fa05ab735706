"""A real training with a watcher beside it that is killed on the way: one MLflow run with all evaluations below it."""

from __future__ import annotations

import random
import subprocess
import sys
import time

import pytest
from mlflow.tracking import MlflowClient

from pipeline.run_status import status_of
from pipeline.tracking import tracking_uri
from pipeline.watching.schedule import owed_suites
from tests.watching.watchers import environment, finish, in_mlflow, judged, start_watcher, written_recipe

pytestmark = pytest.mark.slow


def test_every_checkpoint_of_a_training_is_judged_under_its_mlflow_run(run):
    watcher = start_watcher(run)
    command = [sys.executable, "-m", "pipeline", "train", str(written_recipe(run)), "--runs", str(run.root)]
    training = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        while training.poll() is None:
            time.sleep(random.uniform(3, 12))
            watcher.kill()
            finish(watcher)
            watcher = start_watcher(run)
        code, said = finish(training)
        assert code == 0, said
        code, said = finish(watcher)
        assert code == 0, said
    finally:
        training.kill()
        watcher.kill()
    owed = sorted((step, suite) for step in (0, 5, 10, 15, 20) for suite in owed_suites(run.recipe, step))
    assert len(owed) == 7
    assert judged(run) == {(f"step-{step:08d}", suite) for step, suite in owed}
    assert in_mlflow(run) == [(step, suite, "FINISHED") for step, suite in owed]
    client = MlflowClient(tracking_uri(run.root))
    runs = [found for one in client.search_experiments() for found in client.search_runs([one.experiment_id])]
    (parent,) = [found for found in runs if "mlflow.parentRunId" not in found.data.tags]
    assert parent.info.status == "FINISHED"
    assert {found.data.tags.get("mlflow.parentRunId") for found in runs if found is not parent} == {parent.info.run_id}
    assert [entry.step for entry in client.get_metric_history(parent.info.run_id, "train/loss")] == list(range(1, 21))
    assert status_of(run).state == "finished"
