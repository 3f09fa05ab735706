"""A release from checkpoint to loaded model, in real fresh processes; and what must be refused."""

import copy
import dataclasses
import json
import os
import resource
import shutil
import subprocess
import sys
from typing import Any

import pytest
import torch
import yaml
from mlflow.tracking import MlflowClient
from safetensors import safe_open
from safetensors.torch import load_file

from pipeline.data.manifest import read_manifest
from pipeline.errors import WorldError
from pipeline.evaluation.stage import evaluate
from pipeline.recipe_reader import parse_recipe
from pipeline.release.export import export
from pipeline.release.provenance import file_hashes, read_provenance
from pipeline.release.stage import _verification_inputs, release
from pipeline.release.verification import TOLERANCE, logits_of
from pipeline.tracking import tracking_uri
from tests.evaluation.tiny_run import make_model, write_checkpoint

pytestmark = pytest.mark.slow
COMMAND = "adaponder release /home/ada/tiny.yaml"


@pytest.fixture(scope="module")
def released(run, checkpoint):
    evaluate(run.recipe, run)
    return release(run.recipe, run, command=COMMAND)


LOAD = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
path = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
inputs = tokenizer("token passes gate", return_tensors="pt")
with torch.no_grad():
    output = model(**inputs)
text, depths = model.generate(**inputs, max_new_tokens=8, do_sample=False, return_depths=True)
print(json.dumps({"ids": inputs["input_ids"].tolist(), "depths": output.depths.tolist(),
                  "logits": output.logits.tolist(), "class": type(model).__module__,
                  "text": text.tolist(), "written": depths.tolist()}))
"""


def test_a_stranger_loads_it_and_gets_the_trained_network(run, model, released, tmp_path):
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(released)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["class"].startswith("transformers_modules.")
    with torch.no_grad():
        expected = model(torch.tensor(found["ids"]))
    assert torch.allclose(torch.tensor(found["logits"]), expected.logits, atol=TOLERANCE)
    assert found["depths"] == expected.depths.tolist()
    # It decodes from a cache and skips; here the plain path reads the whole text for every token.
    plain: Any = model
    prompt = torch.tensor(found["ids"])
    end = read_manifest(run.shards).tokenizer.end_of_document_id
    ends = {"eos_token_id": end, "pad_token_id": end}
    mask = torch.ones_like(prompt)
    text = plain.generate(prompt, attention_mask=mask, max_new_tokens=8, do_sample=False, use_cache=False, **ends)
    assert found["text"] == text.tolist()
    with torch.no_grad():
        read = model(text).depths[0, prompt.shape[1] - 1 : -1].tolist()
    assert found["written"] == [read]


def test_the_folder_holds_what_it_should_and_says_so(run, checkpoint, released):
    assert released == run.release
    names = {path.name for path in released.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
    assert {"modeling_adaponder.py", "configuration_adaponder.py", "provenance.json"} <= names
    assert {"adaponder_cache.py", "skipping_passes.py", "generation.py"} <= names
    assert not {"flops.py", "__init__.py"} & names, "nothing that loading does not need"
    config = json.loads((released / "config.json").read_text())
    assert config["halting"] == "skip"
    assert json.loads((checkpoint.path / "config.json").read_text())["halting"] == "masked"
    auto_map = config["auto_map"]
    assert auto_map["AutoModelForCausalLM"] == "modeling_adaponder.AdaPonderForCausalLM"
    provenance = read_provenance(released)
    assert provenance is not None
    assert provenance.files == file_hashes(released)
    assert set(provenance.files) == names - {"provenance.json"}
    assert provenance.identity.manifest_hash == checkpoint.state.manifest_hash
    assert provenance.recipe["train"] == run.recipe.resolved()["train"]
    assert [source["path"] for source in provenance.recipe["tokenize"]["sources"]] == ["words", "more"]
    assert provenance.metrics is not None
    assert provenance.metrics.identity.step == 20
    assert provenance.command == "adaponder release tiny.yaml"
    assert provenance.load_difference <= TOLERANCE
    assert provenance.decoding_difference is not None
    assert provenance.decoding_difference <= 1e-5
    assert provenance.rounding_difference == 0.0
    for path in released.iterdir():
        assert str(run.root).encode() not in path.read_bytes(), path.name


def test_every_number_of_the_card_is_the_runs(run, model, released):
    card = (released / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front)["license"] == run.recipe.release.license
    assert "base_model" not in yaml.safe_load(front)
    manifest = read_manifest(run.shards)
    for split in manifest.splits.values():
        for source, count in split.sources.items():
            row = f"| {split.split} | {source} | {count.documents:,} | {count.tokens:,} | {count.text_bytes:,} |"
            assert row in text
    provenance = read_provenance(released)
    assert provenance is not None
    assert provenance.metrics is not None
    assert f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters" in text
    assert f"{provenance.tokens:,} tokens of training" in text
    assert "return_depths=True" in text
    assert "halted tokens are skipped" in text
    assert "](depth.png)" in text and (released / "depth.png").read_bytes().startswith(b"\x89PNG")
    assert "## How to cite" in text and provenance.identity.save_id[:12] in text
    overall = provenance.metrics.overall
    assert f"| all | {overall.tokens:,} | {overall.loss:.4f} | {overall.perplexity:,.2f} |" in text
    for entry in overall.by_depth:
        assert f"| {entry.depth} | {entry.tokens / overall.tokens:.1%} | {entry.loss:.4f} |" in text


def test_provenance_and_card_are_artifacts_of_the_training_run(run, released):
    client = MlflowClient(tracking_uri(run.root))
    found = [r for e in client.search_experiments() for r in client.search_runs([e.experiment_id])]
    (training,) = [r for r in found if "mlflow.parentRunId" not in r.data.tags]
    logged = {item.path for item in client.list_artifacts(training.info.run_id, "release")}
    assert logged == {"release/README.md", "release/provenance.json"}


def test_the_tracked_run_is_named_though_the_checkpoint_knew_none(run, checkpoint, released):
    client = MlflowClient(tracking_uri(run.root))
    found = [r for e in client.search_experiments() for r in client.search_runs([e.experiment_id])]
    (training,) = [r for r in found if "mlflow.parentRunId" not in r.data.tags]
    assert checkpoint.state.mlflow_run_id is None
    provenance = read_provenance(released)
    assert provenance is not None
    assert provenance.mlflow_run_id == training.info.run_id


def test_a_standing_release_is_left_and_a_damaged_one_is_made_again(run, released, capsys):
    weights = released / "model.safetensors"
    written = weights.stat().st_mtime_ns
    release(run.recipe, run, command=COMMAND)
    assert "nothing to do" in capsys.readouterr().out
    assert weights.stat().st_mtime_ns == written
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    release(run.recipe, run, command=COMMAND)
    assert weights.read_bytes() == whole
    assert not run.release.with_name("release.partial").exists()
    assert not run.release.with_name("release.old").exists()


def test_bfloat16_weights_are_stored_as_such_and_agree(run, model, released):
    content = run.recipe.resolved()
    content["release"]["dtype"] = "bfloat16"
    content["name"] = "half"
    half = dataclasses.replace(run, recipe=parse_recipe(content, "half"))
    shutil.copytree(run.path, half.path, ignore=shutil.ignore_patterns("release*", "mlflow*"))
    folder = release(half.recipe, half, command=COMMAND)
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118 - no mapping
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    # Rounding is told for what it is: the trained network against one of the stored weights.
    rounded = copy.deepcopy(model)
    rounded.load_state_dict(load_file(folder / "model.safetensors"))
    inputs = _verification_inputs(run.shards, read_manifest(run.shards), model)
    moved = (logits_of(model, inputs) - logits_of(rounded, inputs)).abs().max().item()
    provenance = read_provenance(folder)
    assert provenance is not None
    assert moved > 10 * TOLERANCE
    assert provenance.rounding_difference == pytest.approx(moved, rel=0.01)
    assert provenance.load_difference <= TOLERANCE
    claim = "weights rounded to bfloat16 for release"
    assert claim in (folder / "README.md").read_text()
    assert claim not in (released / "README.md").read_text()


def test_generation_ends_where_the_documents_of_the_training_did(run, tmp_path):
    entry = read_manifest(run.shards).tokenizer.model_copy(update={"end_of_document_id": 7})
    export(make_model(run), "float32", run.shards, entry, tmp_path / "exported")
    for name in ("config.json", "generation_config.json"):
        content = json.loads((tmp_path / "exported" / name).read_text())
        assert {key: content[f"{key}_token_id"] for key in ("bos", "eos", "pad")} == {"bos": 7, "eos": 7, "pad": 7}


def test_a_release_from_before_decoding_was_compared_is_no_damage(released, tmp_path):
    content = json.loads((released / "provenance.json").read_text())
    del content["decoding_difference"]
    (tmp_path / "provenance.json").write_text(json.dumps(content))
    provenance = read_provenance(tmp_path)
    assert provenance is not None
    assert provenance.decoding_difference is None


def test_other_weights_at_the_same_step_are_released_anew(run, model, checkpoint, released):
    other = copy.deepcopy(model)
    torch.nn.init.ones_(other.lm_head.weight)
    kept = checkpoint.path.with_name("kept")
    checkpoint.path.rename(kept)
    try:
        written = write_checkpoint(run, other)
        release(run.recipe, run, command=COMMAND)
        assert torch.equal(load_file(released / "model.safetensors")["lm_head.weight"], other.lm_head.weight)
        provenance = read_provenance(released)
        assert provenance is not None
        assert provenance.identity.save_id == written.state.save_id != checkpoint.state.save_id
        assert provenance.metrics is None, "the evaluation that stands is of the weights before"
    finally:
        shutil.rmtree(checkpoint.path)
        kept.rename(checkpoint.path)
        release(run.recipe, run, command=COMMAND)


def test_an_edited_tokenizer_is_refused(run, model, tmp_path):
    shards = tmp_path / "shards"
    shutil.copytree(run.shards / "tokenizer", shards / "tokenizer")
    path = shards / "tokenizer" / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    path.write_text(json.dumps(content))
    with pytest.raises(WorldError, match=r"tokenizer\.json is not the tokenizer that the shards were made with"):
        export(copy.deepcopy(model), "float32", shards, read_manifest(run.shards).tokenizer, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_a_full_disk_is_told_in_a_line(run, tmp_path):
    model, entry = make_model(run), read_manifest(run.shards).tokenizer
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # bytes a file, less than the weights
    try:
        with pytest.raises(WorldError, match=r"weights cannot be written to .*exported: .*File too large"):
            export(model, "float32", run.shards, entry, tmp_path / "exported")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_file_in_the_way_is_told_in_a_line(run, released):
    partial = released.with_name("release.partial")
    partial.write_text("")
    card = (released / "README.md").read_text()
    (released / "README.md").write_text("edited")  # so that it is not taken for the one asked for
    try:
        with pytest.raises(WorldError, match=r"release: .*release\.partial: Not a directory"):
            release(run.recipe, run, command=COMMAND)
    finally:
        partial.unlink()
        (released / "README.md").write_text(card)


def test_a_kill_between_the_two_renames_is_repaired(run, released):
    whole = file_hashes(released)
    old = released.with_name("release.old")
    released.rename(old)
    release(run.recipe, run, command=COMMAND)
    assert file_hashes(released) == whole
    assert not old.exists()


def test_a_refused_release_leaves_the_standing_one(run, checkpoint, released):
    card = (released / "README.md").read_text()
    (released / "README.md").write_text("edited")  # so that it is not taken for the one asked for
    before = file_hashes(released)
    tokenizer = run.shards / "tokenizer" / "tokenizer_config.json"
    whole = tokenizer.read_text()
    tokenizer.write_text("no JSON")
    try:
        with pytest.raises(WorldError, match="does not load in a fresh process"):
            release(run.recipe, run, command=COMMAND)
    finally:
        tokenizer.write_text(whole)
    assert file_hashes(released) == before
    assert read_provenance(released) is not None
    (released / "README.md").write_text(card)
