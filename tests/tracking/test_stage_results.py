"""Evaluations in MLflow: each once with each number once, whatever is refused, repeated or alternated."""

import shutil

import pytest
from mlflow.tracking import MlflowClient

from pipeline.checkpoint import Checkpoint, TrainerState
from pipeline.tracking import log_evaluation, tracking_uri


@pytest.fixture
def checkpoint(folder, manifest, tmp_path):
    state = TrainerState(
        step=7,
        rows=7,
        tokens=7,
        phase="only",
        trained="all",
        seed=0,
        recipe={},
        recipe_hash="r" * 64,
        manifest_hash=manifest,
        mlflow_run_id=None,
        world_size=1,
        zero_stage=0,
        precision="fp32",
        versions={},
        save_id="5" * 32,
    )
    return Checkpoint(tmp_path / "step-00000007", state)


@pytest.fixture
def artifacts(tmp_path):
    path = tmp_path / "validation"
    path.mkdir()
    (path / "metrics.json").write_text("{}")
    return path


def children(folder):
    client = MlflowClient(tracking_uri(folder.root))
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return [run for run in runs if "mlflow.parentRunId" in run.data.tags]


def losses(folder, run):
    client = MlflowClient(tracking_uri(folder.root))
    return [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "eval/validation/loss")]


def test_numbers_arrive_once_though_the_artifacts_are_refused_at_first(folder, checkpoint, artifacts):
    store = folder.root / "mlartifacts"
    store.write_text("a file where the folder of artifacts should be")
    for _ in range(2):
        assert not log_evaluation(folder, checkpoint, "validation", {"loss": 2.5}, artifacts)
        (child,) = children(folder)
        assert child.info.status == "RUNNING"
        assert losses(folder, child) == [(7, 2.5)]
    store.unlink()
    ends = set()
    for _ in range(2):
        assert log_evaluation(folder, checkpoint, "validation", {"loss": 2.5}, artifacts)
        (child,) = children(folder)
        assert child.info.status == "FINISHED"
        assert losses(folder, child) == [(7, 2.5)]
        ends.add(child.info.end_time)
    assert len(ends) == 1
    assert child.data.tags["adaponder.save_id"] == "5" * 32
    logged = MlflowClient(tracking_uri(folder.root)).list_artifacts(child.info.run_id, "validation")
    assert [item.path for item in logged] == ["validation/metrics.json"]


def test_another_evaluation_of_the_same_checkpoint_is_another_child(folder, checkpoint, artifacts):
    for value in (2.5, 3.5, 2.5, 3.5):
        assert log_evaluation(folder, checkpoint, "validation", {"loss": value}, artifacts)
    assert sorted(losses(folder, child) for child in children(folder)) == [[(7, 2.5)], [(7, 3.5)]]


def test_other_weights_at_the_same_step_are_another_child(folder, checkpoint, artifacts, tmp_path):
    state = checkpoint.state.model_copy(update={"save_id": "6" * 32})
    for evaluated in (checkpoint, Checkpoint(checkpoint.path, state)):
        assert log_evaluation(folder, evaluated, "validation", {"loss": 2.5}, artifacts)
    assert {child.data.tags["adaponder.save_id"] for child in children(folder)} == {"5" * 32, "6" * 32}


def test_a_copied_run_folder_goes_on_by_itself(folder, checkpoint, artifacts, tmp_path):
    assert log_evaluation(folder, checkpoint, "validation", {"loss": 2.5}, artifacts)
    shutil.copytree(folder.root, tmp_path / "copied")
    copied = type(folder)(tmp_path / "copied", folder.recipe)
    assert log_evaluation(copied, checkpoint, "validation", {"loss": 2.5}, artifacts)
    assert len(children(copied)) == len(children(folder)) == 1
