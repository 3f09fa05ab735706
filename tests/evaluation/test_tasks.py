"""The suite `tasks` on a tiny run: what it writes, what it names, when it is done again, and on two ranks."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import math
from pathlib import Path

import pytest
import torch
from mlflow.tracking import MlflowClient

from pipeline.checkpoint import find_checkpoint
from pipeline.data.manifest import read_manifest
from pipeline.durable import sha256_json
from pipeline.errors import UserError, WorldError
from pipeline.evaluation.stage import evaluate_suites
from pipeline.evaluation.subject import Subject
from pipeline.evaluation.tasks import Tasks
from pipeline.recipe_reader import parse_recipe
from pipeline.tracking import tracking_uri
from tests.evaluation.harness.local_tasks import CHOICES, EXAMPLES, LAMBADA, ROLLING, WRITING, make_tasks
from tests.evaluation.several_ranks import ranks
from tests.evaluation.tiny_run import make_model, make_run, write_checkpoint

pytest.importorskip("lm_eval")

NAMES = [LAMBADA, CHOICES, WRITING, ROLLING]


def with_tasks(run, folder, **fields):
    content = run.recipe.resolved()
    content["evaluate"]["tasks"] = {
        "names": NAMES,
        "num_fewshot": [0, 2],
        "include_path": str(folder),
        "batch_rows": 5,
        **fields,
    }
    return dataclasses.replace(run, recipe=parse_recipe(content, "changed"))


@pytest.fixture(scope="module")
def own_run(tmp_path_factory):
    """A run whose checkpoint no other test touches, and its tasks."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("judged")
    run = make_run(root)
    write_checkpoint(run, make_model(run))
    return with_tasks(run, make_tasks(root / "tasks"))


@pytest.fixture(scope="module")
def judged(own_run):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        found = evaluate_suites(own_run.recipe, own_run, "latest", ["tasks"])["tasks"]
    return found, own_run.evaluation("step-00000020", "tasks")


def test_every_task_is_judged_with_each_number_of_examples(judged):
    found, _ = judged
    of_round = {(entry.task, entry.shots) for entry in found.tasks}
    assert of_round == {(name, shots) for name in NAMES for shots in (0, 2)} - {(ROLLING, 2)}
    for entry in found.tasks:
        assert entry.examples == EXAMPLES[entry.task]
        assert 1 < entry.mean_depth < 3 and 1 < entry.mean_depth_read < 3
        assert entry.read_tokens >= entry.scored_tokens > 0
    flat = found.flat()
    assert {f"{CHOICES}/2shot/acc", f"{CHOICES}/2shot/acc_stderr", f"{LAMBADA}/0shot/mean_depth"} <= set(flat)
    expected = (flat[f"{CHOICES}/0shot/acc"] + flat[f"{LAMBADA}/0shot/acc"]) / 2
    assert flat["average/0shot/acc"] == pytest.approx(expected)
    assert all(math.isfinite(value) for value in flat.values())


def test_the_harness_own_files_tell_the_same(judged):
    found, output = judged
    for entry in found.tasks:
        results = json.loads((output / f"results_{entry.shots}shot.json").read_text())
        assert results["n-shot"][entry.task] == entry.shots
        assert results["config"]["max_passes"] == 3
        packed = (output / f"samples_{entry.task}_{entry.shots}shot.jsonl.gz").read_bytes()
        samples = [json.loads(line) for line in gzip.decompress(packed).decode().splitlines()]
        assert len(samples) == entry.examples
        if entry.task == LAMBADA:
            logs = [float(sample["resps"][0][0][0]) for sample in samples]
            assert entry.metrics["perplexity"] == pytest.approx(math.exp(-sum(logs) / len(logs)), rel=1e-6)
            right = [sample["resps"][0][0][1] == "True" for sample in samples]
            assert entry.metrics["acc"] == results["results"][LAMBADA]["acc,none"] == sum(right) / len(right)
    assert (output / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_the_documents_of_each_task_are_an_input_in_mlflow(own_run, judged, tmp_path):
    evaluate_suites(own_run.recipe, own_run, "latest", ["tasks"])
    client = MlflowClient(tracking_uri(own_run.root))
    runs = [run for one in client.search_experiments() for run in client.search_runs([one.experiment_id])]
    (child,) = [run for run in runs if run.data.tags.get("adaponder.suite") == "tasks"]
    assert child.inputs is not None
    found = {each.dataset.name: each for each in child.inputs.dataset_inputs}
    assert set(found) == set(NAMES) and len(child.inputs.dataset_inputs) == len(NAMES), "once, whatever the examples"
    for name in NAMES:
        lines = (Path(own_run.recipe.evaluate.tasks.include_path) / f"{name}.jsonl").read_text().splitlines()
        documents = [json.dumps(json.loads(line), indent=2, ensure_ascii=False) for line in lines]
        hashes = [hashlib.sha256(document.encode()).hexdigest() for document in documents]
        assert found[name].dataset.digest == sha256_json(hashes)[:36]
        assert {tag.key: tag.value for tag in found[name].tags} == {"mlflow.data.context": "evaluation"}
        assert json.loads(found[name].dataset.profile or "") == {"documents": EXAMPLES[name]}
        assert json.loads(found[name].dataset.source) == {"path": "json", "split": "test"}
    few = with_tasks(own_run, own_run.recipe.evaluate.tasks.include_path, limit=4, num_fewshot=[0], names=[LAMBADA])
    subject = Subject(few.recipe, few, find_checkpoint(few.checkpoints, "latest"), read_manifest(few.shards))
    tmp_path.joinpath("few").mkdir()
    limited = Tasks().judge(subject, judged[0].identity, tmp_path / "few")
    (read,) = Tasks().reads(limited, subject)
    assert read.digest[:36] != found[LAMBADA].dataset.digest, "of the documents that were read"


def test_a_judgement_that_stands_is_not_made_again_until_its_tasks_change(own_run, judged, tmp_path, capsys):
    _, output = judged
    before = (output / "metrics.json").read_bytes()
    faster = with_tasks(own_run, own_run.recipe.evaluate.tasks.include_path, batch_rows=2)
    evaluate_suites(faster.recipe, faster, "latest", ["tasks"])
    assert "nothing to do" in capsys.readouterr().out
    assert (output / "metrics.json").read_bytes() == before
    suite = Tasks()
    other = make_tasks(tmp_path / "other", new_tokens=9)
    assert suite.settings(with_tasks(own_run, other).recipe) != suite.settings(own_run.recipe)
    assert suite.settings(with_tasks(own_run, other, limit=2).recipe)["limit"] == 2


def test_a_limit_judges_the_first_examples(own_run, judged, tmp_path):
    everything, _ = judged
    few = with_tasks(own_run, own_run.recipe.evaluate.tasks.include_path, limit=4, num_fewshot=[0], names=[LAMBADA])
    checkpoint = find_checkpoint(few.checkpoints, "latest")
    subject = Subject(few.recipe, few, checkpoint, read_manifest(few.shards))
    found = Tasks().judge(subject, everything.identity, tmp_path)
    (entry,) = found.tasks
    assert entry.examples == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "accuracy.png",
        "results_0shot.json",
        f"samples_{LAMBADA}_0shot.jsonl.gz",
    ]


def test_what_is_wrong_is_told_before_the_network_is_loaded(own_run, judged, tmp_path, monkeypatch):
    def load(*_):
        raise AssertionError("the network is loaded")

    monkeypatch.setattr("pipeline.evaluation.subject.load_model", load)
    folder = make_tasks(tmp_path / "tasks")
    (folder / f"{CHOICES}.jsonl").unlink()
    broken = with_tasks(own_run, folder)
    with pytest.raises(WorldError, match=f"the data of task {CHOICES} cannot be had"):
        evaluate_suites(broken.recipe, broken, "latest", ["tasks"])
    zero = with_tasks(own_run, folder, names=[ROLLING], num_fewshot=[5])
    with pytest.raises(UserError, match="add 0 to num_fewshot"):
        evaluate_suites(zero.recipe, zero, "latest", ["tasks"])


def test_a_missing_package_is_told_with_the_command_that_installs_it(own_run, monkeypatch):
    from importlib.metadata import PackageNotFoundError

    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("pipeline.evaluation.harness.package.version", missing)
    with pytest.raises(UserError, match="needs the package lm_eval.*pip install"):
        evaluate_suites(own_run.recipe, own_run, "latest", ["tasks"])


@pytest.mark.slow
def test_two_ranks_find_what_one_finds(own_run, judged):
    _, output = judged
    kept = output.with_name("kept")
    output.rename(kept)
    done = ranks(own_run, "--suite", "tasks")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((output / "metrics.json").read_text())
    assert found["tasks"] == json.loads((kept / "metrics.json").read_text())["tasks"]
    for path in kept.glob("samples_*"):
        assert (output / path.name).read_bytes() == path.read_bytes()
    again = ranks(own_run, "--suite", "tasks")
    assert again.returncode == 0 and "nothing to do" in again.stdout


@pytest.mark.slow
def test_a_mistake_ends_all_ranks_with_one_line(own_run):
    wrong = with_tasks(own_run, "/nowhere")
    done = ranks(wrong, "--suite", "tasks")
    assert done.returncode != 0
    assert done.stderr.count("there is no folder /nowhere") == 1
