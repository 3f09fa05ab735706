"""Evaluations in MLflow: each once with each number once, whatever is refused, repeated or alternated."""

import hashlib
import json
import shutil

import pytest
from mlflow.tracking import MlflowClient

from pipeline.checkpoint import STATE_FILE, Checkpoint, TrainerState
from pipeline.checkpoint_marker import Marker
from pipeline.data.manifest import manifest_hash, read_manifest, write_manifest
from pipeline.data_read import DataRead
from pipeline.durable import write_text
from pipeline.tracking import log_evaluation, sync, tracking_uri


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
    return Checkpoint(tmp_path / "step-00000007", state, Marker(files={}))


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


def test_inputs_are_logged_once_and_added_to_a_child_that_has_none(folder, checkpoint, artifacts):
    """As those of an older version, or of one that was cut short."""
    source = {"uri": "https://ada:s3cret@host/data?sig=s3cret"}
    reads = [DataRead(f"task {number}", str(number) * 64, "evaluation", "local", source) for number in range(120)]
    for given in ([], reads[:3], reads, reads):
        assert log_evaluation(folder, checkpoint, "validation", {"loss": 2.5}, artifacts, given)
        (child,) = children(folder)
        assert child.inputs is not None
        found = child.inputs.dataset_inputs
        assert sorted((each.dataset.name, each.dataset.digest) for each in found) == sorted(
            (read.name, read.digest[:36]) for read in given
        )
    assert {each.dataset.source for each in found} == {json.dumps({"uri": "https://***@host/data?***"})}
    assert [(tag.key, tag.value) for tag in found[0].tags] == [("mlflow.data.context", "evaluation")]


def test_another_evaluation_of_the_same_checkpoint_is_another_child(folder, checkpoint, artifacts):
    for value in (2.5, 3.5, 2.5, 3.5):
        assert log_evaluation(folder, checkpoint, "validation", {"loss": value}, artifacts)
    assert sorted(losses(folder, child) for child in children(folder)) == [[(7, 2.5)], [(7, 3.5)]]


def test_other_weights_at_the_same_step_are_another_child(folder, checkpoint, artifacts, tmp_path):
    state = checkpoint.state.model_copy(update={"save_id": "6" * 32})
    for evaluated in (checkpoint, Checkpoint(checkpoint.path, state, checkpoint.marker)):
        assert log_evaluation(folder, evaluated, "validation", {"loss": 2.5}, artifacts)
    assert {child.data.tags["adaponder.save_id"] for child in children(folder)} == {"5" * 32, "6" * 32}


def test_a_copied_run_folder_goes_on_by_itself(folder, checkpoint, artifacts, tmp_path):
    assert log_evaluation(folder, checkpoint, "validation", {"loss": 2.5}, artifacts)
    shutil.copytree(folder.root, tmp_path / "copied")
    copied = type(folder)(tmp_path / "copied", folder.recipe)
    assert log_evaluation(copied, checkpoint, "validation", {"loss": 2.5}, artifacts)
    assert len(children(copied)) == len(children(folder)) == 1


@pytest.fixture
def of_a_store(make_folder, folder, tmp_path):
    """A run whose shards lie at a URL that this machine has nothing of yet."""
    store = tmp_path / "store"
    shutil.copytree(folder.shards, store)
    (store / "tokenizer").mkdir()
    (store / "tokenizer" / "tokenizer.json").write_text("{}")
    manifest = read_manifest(store)
    sha256 = hashlib.sha256(b"{}").hexdigest()
    tokenizer = manifest.tokenizer.model_copy(update={"sha256": sha256})
    write_manifest(store, manifest.model_copy(update={"tokenizer": tokenizer}))
    found = make_folder("name=of-a-store", f"data.shards={store.as_uri()}", f"data.cache={tmp_path / 'cache'}")
    shutil.rmtree(tmp_path / "cache")
    found.path.mkdir(parents=True)
    return found, store


def run_of(folder):
    client = MlflowClient(tracking_uri(folder.root))
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return run


def test_shards_of_a_url_are_opened_before_they_are_described(of_a_store):
    folder, store = of_a_store
    assert sync(folder)
    run = run_of(folder)
    assert run.data.tags["adaponder.manifest_hash"] == manifest_hash(read_manifest(store))
    assert run.inputs is not None
    assert len(run.inputs.dataset_inputs) == 1


def test_a_run_is_that_of_the_shards_it_was_trained_on_though_others_stand_there_now(of_a_store, checkpoint):
    folder, store = of_a_store
    trained_on = manifest_hash(read_manifest(store))
    write_manifest(store, read_manifest(store).model_copy(update={"seq_len": 64}))
    path = folder.checkpoints / "step-00000007"
    state = checkpoint.state.model_copy(update={"manifest_hash": trained_on}).model_dump_json()
    write_text(path / STATE_FILE, state)
    sha256 = hashlib.sha256(state.encode()).hexdigest()
    files = {STATE_FILE: {"size": len(state.encode()), "sha256": sha256}}
    write_text(path / "COMPLETE", json.dumps({"schema_version": 2, "files": files}))
    assert sync(folder)
    run = run_of(folder)
    assert run.data.tags["adaponder.manifest_hash"] == trained_on
    assert run.inputs is None or not run.inputs.dataset_inputs
