"""The stage against the network itself: the same numbers as a plain loop over the rows, by source and overall."""

import copy
import dataclasses
import json
import math
import re
import resource
import shutil

import pytest
import torch
from mlflow.tracking import MlflowClient

from pipeline.data.manifest import read_manifest, write_manifest
from pipeline.data.rows import RowReader
from pipeline.errors import UserError, WorldError
from pipeline.evaluation.stage import evaluate, evaluate_suites
from pipeline.evaluation.subject import Subject
from pipeline.evaluation.validation import validate
from pipeline.recipe_reader import parse_recipe
from pipeline.tracking import tracking_uri
from tests.evaluation.tiny_run import write_checkpoint
from tokenization.splits import validation_key


@pytest.fixture(scope="module")
def evaluated(run, checkpoint):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return evaluate(run.recipe, run)


def with_recipe(run, **evaluation):
    content = run.recipe.resolved()
    content["evaluate"].update(evaluation)
    return dataclasses.replace(run, recipe=parse_recipe(content, "changed"))


def test_numbers_are_those_of_a_plain_loop(run, model, evaluated):
    manifest = read_manifest(run.shards)
    everything: list[tuple[float, int]] = []
    all_bytes = 0.0
    for key, split in manifest.splits.items():
        if split.source is None:
            continue
        tokens: list[tuple[float, int]] = []
        with RowReader(run.shards, manifest, key) as reader:
            for row in range(min(16, reader.rows)):
                inputs, labels = reader.batch([row])
                with torch.no_grad():
                    output = model(inputs)
                logs = output.logits[0].double().log_softmax(-1)
                for place, label in enumerate(labels[0].tolist()):
                    if label != -100:
                        tokens.append((-logs[place, label].item(), int(output.depths[0, place])))
        found = evaluated.sources[split.source]
        loss = sum(nll for nll, _ in tokens) / len(tokens)
        count = split.sources[split.source]
        all_bytes += len(tokens) * count.text_bytes / count.tokens
        assert found.tokens == len(tokens)
        assert found.loss == pytest.approx(loss, abs=1e-5)
        assert found.perplexity == pytest.approx(math.exp(loss), rel=1e-4)
        assert found.bits_per_byte == pytest.approx(loss / math.log(2) * count.tokens / count.text_bytes, rel=1e-4)
        assert found.mean_depth == pytest.approx(sum(depth for _, depth in tokens) / len(tokens))
        everything += tokens
    overall = evaluated.overall
    assert overall.tokens == len(everything)
    assert overall.loss == pytest.approx(sum(nll for nll, _ in everything) / len(everything), abs=1e-5)
    assert overall.bits_per_byte == pytest.approx(sum(nll for nll, _ in everything) / math.log(2) / all_bytes, rel=1e-4)
    assert [entry.tokens for entry in overall.by_depth] == [
        sum(depth == k for _, depth in everything) for k in (1, 2, 3)
    ]
    assert all(entry.tokens for entry in overall.by_depth), "the test's gates halt after every pass"


def test_the_folder_says_what_it_is_and_figures_are_images(run, checkpoint, evaluated):
    output = run.evaluation(checkpoint.name, "validation")
    identity = json.loads((output / "metrics.json").read_text())["identity"]
    assert identity["recipe_hash"] == run.recipe.hash()
    assert (identity["checkpoint"], identity["step"]) == ("step-00000020", 20)
    assert identity["settings"] == {"rows_per_source": 16}
    figures = sorted(output.glob("*.png"))
    assert [figure.name for figure in figures] == ["depth.png", "loss_by_depth.png", "loss_by_source.png"]
    assert all(figure.read_bytes().startswith(b"\x89PNG") for figure in figures)


def test_the_evaluation_is_a_child_of_the_training_in_mlflow_once(run, checkpoint, evaluated):
    again = evaluate(run.recipe, run, checkpoint.name)
    assert again == evaluated
    client = MlflowClient(tracking_uri(run.root))
    children = [
        found
        for experiment in client.search_experiments()
        for found in client.search_runs([experiment.experiment_id])
        if "mlflow.parentRunId" in found.data.tags and found.data.tags["adaponder.suite"] == "validation"
    ]
    (child,) = children
    parent = client.get_run(child.data.tags["mlflow.parentRunId"])
    assert parent.info.run_name == "tiny"
    assert child.info.status == "FINISHED"
    (loss,) = client.get_metric_history(child.info.run_id, "eval/validation/loss")
    assert (loss.step, loss.value) == (20, evaluated.overall.loss)
    key = validation_key("more words").removeprefix("validation-")
    of_source = child.data.metrics[f"eval/validation/source/{key}/mean_depth"]
    assert of_source == evaluated.sources["more words"].mean_depth
    logged = {item.path for item in client.list_artifacts(child.info.run_id, "validation")}
    assert {"validation/metrics.json", "validation/depth.png"} <= logged


def test_what_was_evaluated_is_not_done_again_and_other_rows_are(run, checkpoint, evaluated, capsys):
    output = run.evaluation(checkpoint.name, "validation") / "metrics.json"
    written = output.stat().st_mtime_ns
    evaluate(run.recipe, run)
    assert "nothing to do" in capsys.readouterr().out
    assert output.stat().st_mtime_ns == written
    fewer = with_recipe(run, rows_per_source=2)
    try:
        metrics = evaluate(fewer.recipe, fewer)
        assert metrics.overall.rows == 4
        assert output.stat().st_mtime_ns != written
    finally:
        evaluate(run.recipe, run)


def test_other_weights_at_the_same_step_are_evaluated(run, model, checkpoint, evaluated):
    kept = checkpoint.path.with_name("kept")
    checkpoint.path.rename(kept)
    try:
        other = copy.deepcopy(model)
        torch.nn.init.zeros_(other.lm_head.weight)  # every token is as likely as any other
        write_checkpoint(run, other)
        assert evaluate(run.recipe, run).overall.loss == pytest.approx(math.log(model.config.vocab_size), abs=1e-4)
    finally:
        shutil.rmtree(checkpoint.path)
        kept.rename(checkpoint.path)
        evaluate(run.recipe, run)


def test_a_disk_that_refuses_leaves_the_standing_evaluation(run, checkpoint, evaluated):
    output = run.evaluation(checkpoint.name, "validation")
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    fewer = with_recipe(run, rows_per_source=2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # bytes a file, less than any figure
    try:
        with pytest.raises(WorldError, match="evaluate: .*: File too large"):
            evaluate(fewer.recipe, fewer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    evaluate(run.recipe, run)


def test_a_kill_between_the_two_renames_is_repaired(run, checkpoint, evaluated, capsys):
    output = run.evaluation(checkpoint.name, "validation")
    whole = (output / "metrics.json").read_bytes()
    old = output.with_name("validation.old")
    output.rename(old)
    evaluate(run.recipe, run)
    assert "nothing to do" in capsys.readouterr().out
    assert (output / "metrics.json").read_bytes() == whole
    assert not old.exists()


@pytest.mark.parametrize("batch_rows", [1, 5])
def test_the_size_of_a_batch_changes_nothing(run, checkpoint, model, evaluated, batch_rows):
    recipe = with_recipe(run, batch_rows=batch_rows).recipe
    metrics = validate(Subject(recipe, run, checkpoint, read_manifest(run.shards), model), evaluated.identity)
    assert metrics.overall.loss == pytest.approx(evaluated.overall.loss, abs=1e-5)
    assert metrics.overall.by_depth[0].tokens == evaluated.overall.by_depth[0].tokens


def test_shards_without_validation_text_are_the_users_mistake(run, checkpoint, model, evaluated):
    manifest = read_manifest(run.shards)
    bare = manifest.model_copy(update={"splits": {"train": manifest.train}})
    with pytest.raises(UserError, match="holds no validation rows"):
        validate(Subject(run.recipe, run, checkpoint, bare, model), evaluated.identity)


def test_a_network_that_diverged_is_refused_by_name(run, checkpoint, model, evaluated):
    broken = copy.deepcopy(model)
    torch.nn.init.constant_(broken.lm_head.weight, math.nan)
    with pytest.raises(WorldError, match="step-00000020 on validation-.* is not a number"):
        validate(Subject(run.recipe, run, checkpoint, read_manifest(run.shards), broken), evaluated.identity)


def test_shards_other_than_the_trained_ones_are_refused(run, checkpoint, tmp_path):
    other = dataclasses.replace(run, root=tmp_path)
    shutil.copytree(run.path, other.path, ignore=shutil.ignore_patterns("evaluation", "mlflow*"))
    write_manifest(other.shards, read_manifest(other.shards).model_copy(update={"rejected": {"empty_document": 1}}))
    with pytest.raises(UserError, match="was trained on manifest"):
        evaluate(other.recipe, other)


def test_bad_names_are_the_users_mistakes(run, checkpoint):
    with pytest.raises(UserError, match="no evaluation suite 'lambada'"):
        evaluate_suites(run.recipe, run, "latest", ["validation", "lambada"])
    with pytest.raises(UserError, match="step-00000099"):
        evaluate(run.recipe, run, "step-00000099")


def test_a_store_that_refuses_fails_no_evaluation(run, checkpoint, evaluated, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://ada:s3cret@127.0.0.1:9/mlflow")
    assert evaluate(run.recipe, run).overall == evaluated.overall
    told = capsys.readouterr().out
    assert re.search("MLflow .*does not (take|get) the evaluation validation", told)
    assert "s3cret" not in told + run.events_file.read_text()
