"""A release as a version of the registered model: against sqlite, and a real server that keeps the artifacts."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch
from mlflow.tracking import MlflowClient
from transformers import AutoTokenizer

from pipeline.checkpoint import find_checkpoint, load_model
from pipeline.durable import sha256_file
from pipeline.recipe_reader import parse_recipe
from pipeline.release.stage import release
from pipeline.tracking import register_release, tracking_uri
from pipeline.tracking.registered_model import requirements
from tests.evaluation.tiny_run import make_model, make_run, write_checkpoint
from tests.tracking.mlflow_server import free_port, mlflow_server

pytestmark = pytest.mark.slow
NAME = "tiny"
COMMAND = "adaponder release tiny"

PREDICT = """
import json, sys
import mlflow, pandas
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(f"models:/{sys.argv[2]}@candidate")
found = model.predict(pandas.DataFrame({"prompt": ["token passes", ""]}), params={"max_new_tokens": 6})
sampled = [model.predict(pandas.DataFrame({"prompt": ["token"]}), params={"greedy": False, "seed": seed, "top_k": 0,
           "max_new_tokens": 12, "temperature": 2.0})["text"][0] for seed in (1, 1, 2)]
print(json.dumps({"rows": found.to_dict("records"), "sampled": sampled,
                  "signature": model.metadata.signature.to_dict(), "example": model.input_example.to_dict("list")}))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.set_num_threads(1)
    folder = make_run(tmp_path_factory.mktemp("registered"), release={"dtype": "float32", "register_model": True})
    write_checkpoint(folder, make_model(folder))
    return folder


@pytest.fixture(autouse=True)
def _own_store(monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)  # where MLflow would leave ./mlruns


def client_of(run):
    uri = tracking_uri(run.root)
    return MlflowClient(uri, uri)


def versions_of(run):
    return sorted(client_of(run).search_model_versions(f"name = '{NAME}'"), key=lambda version: int(version.version))


def predicted(run, tmp_path):
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", PREDICT, tracking_uri(run.root), NAME],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def require_sound(run, released, tmp_path):
    """The candidate is this release, says what it takes, and writes what the network writes."""
    (version,) = versions_of(run)
    candidate = client_of(run).get_model_version_by_alias(NAME, "candidate")
    assert candidate.version == version.version
    assert version.tags["adaponder.release_sha256"] == sha256_file(released / "provenance.json")
    assert version.tags["adaponder.step"] == "20"
    found = predicted(run, tmp_path)
    assert [column["name"] for column in json.loads(found["signature"]["inputs"])] == ["prompt"]
    assert [column["name"] for column in json.loads(found["signature"]["outputs"])] == ["text", "mean_depth"]
    assert {entry["name"] for entry in json.loads(found["signature"]["params"])} >= {"max_new_tokens", "seed"}
    assert found["example"] == {"prompt": ["The "]}
    tokenizer = AutoTokenizer.from_pretrained(run.shards / "tokenizer")
    ids = tokenizer("token passes", add_special_tokens=False, return_tensors="pt")
    end = tokenizer.eos_token_id
    network = load_model(find_checkpoint(run.checkpoints))
    text = network.generate(**ids, max_new_tokens=6, do_sample=False, eos_token_id=end, pad_token_id=end)
    assert found["rows"][0]["text"] == tokenizer.decode(text[0])
    assert 1 <= found["rows"][0]["mean_depth"] <= 3
    assert len(found["rows"]) == 2
    first, again, other = found["sampled"]
    assert first == again != other


def test_a_release_is_registered_once_and_another_becomes_the_candidate(run, tmp_path, capsys):
    released = release(run.recipe, run, command=COMMAND)
    assert "registered model tiny, version 1" in capsys.readouterr().out
    require_sound(run, released, tmp_path)
    assert not (tmp_path / "mlruns").exists()
    release(run.recipe, run, command=COMMAND)
    assert len(versions_of(run)) == 1
    # Killed between the version and its alias: the same command gives the alias.
    client_of(run).delete_registered_model_alias(NAME, "candidate")
    release(run.recipe, run, command=COMMAND)
    assert candidate_of(run) == "1"
    # Killed between the sent weights and the version: they are found, and not sent again.
    client = client_of(run)
    client.delete_model_version(NAME, "1")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    before = len(client.search_logged_models(experiments))
    release(run.recipe, run, command=COMMAND)
    assert len(client.search_logged_models(experiments)) == before == 1
    content = run.recipe.resolved()
    content["release"]["license"] = "mit"
    other = dataclasses.replace(run, recipe=parse_recipe(content, "tiny"))
    release(other.recipe, other, command=COMMAND)
    assert candidate_of(run) == "3"
    # Looking at the older one again does not take the alias back.
    versions = versions_of(run)
    assert [version.tags["adaponder.step"] for version in versions] == ["20", "20"]
    assert register_release(other, other.release)
    assert candidate_of(run) == "3"


def candidate_of(run):
    return str(client_of(run).get_model_version_by_alias(NAME, "candidate").version)


def test_a_server_that_is_away_gets_it_later_and_keeps_the_weights(run, tmp_path, monkeypatch, capsys):
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ada:secret@127.0.0.1:{port}")
    released = release(run.recipe, run, command=COMMAND)
    told = capsys.readouterr().out
    assert "does not take the registered model" in told and "the same command sends it later" in told
    assert "secret" not in told
    with mlflow_server(port, tmp_path / "served.db", tmp_path / "artifacts"):
        release(run.recipe, run, command=COMMAND)
        told = capsys.readouterr().out
        assert "nothing to do" in told and "registered model tiny, version 1" in told
        require_sound(run, released, tmp_path)
        assert list((tmp_path / "artifacts").rglob("model.safetensors")), "the server keeps the weights"
        release(run.recipe, run, command=COMMAND)
        assert len(versions_of(run)) == 1


def test_requirements_are_versions_that_an_index_has():
    assert all("==" in line and "+" not in line for line in requirements())
    assert {line.partition("==")[0] for line in requirements()} >= {"torch", "transformers", "safetensors", "mlflow"}
