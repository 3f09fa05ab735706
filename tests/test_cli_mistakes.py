"""A mistake ends in one line on stderr and exit code 2, through the real command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from tests.training.test_checks import pretend_checkpoint


@pytest.mark.parametrize(
    ("stage", "arguments", "told"),
    [
        ("run", ["--set", "train.micro_bach=2"], "did you mean 'micro_batch'?"),
        ("run", ["--set", "train.micro_batch=two"], "train.micro_batch: input should be a valid integer"),
        ("tokenize", ["--set", "tokenize.sources.0.path=/no/such/folder"], "/no/such/folder"),
        ("tokenize", ["--part", "0/4"], "--part 0/4: I/N with I from 1 to N is expected"),
        ("tokenize", ["--part", "4"], "--part 4: I/N with I from 1 to N is expected"),
        ("tokenize", ["--scan"], "--scan goes with --part"),
        ("tokenize", ["--part", "1/2", "--scan"], "remove_duplicates is off, there is nothing to scan for"),
        ("tokenize", ["--part", "1/2", "--finish"], "give one of the two"),
        ("run", ["--set", "tokenize.seq_len=100"], "beyond the backbone's max_position_embeddings 64"),
        ("run", ["--set", "tokenize.tokenizer.train_vocab_size=400"], "is larger than model.backbone.vocab_size 304"),
        ("run", ["--set", "train.global_batch=6"], "not divisible by train.ranks 2 x train.micro_batch 2"),
        ("release", ["--checkpoint", "latest"], "holds no complete checkpoint"),
    ],
)
def test_one_line_and_exit_code_2(runs, recipe, stage, arguments, told):
    if stage == "tokenize":
        del recipe["data"]
    done = runs.adaponder(stage, recipe, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (runs.root / recipe["name"]).exists()


def test_a_missing_recipe(runs, recipe):
    command = runs.command("run", recipe)
    command[4] = "nowhere.yaml"
    done = subprocess.run(command, env=runs.environment(), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "nowhere.yaml: no such file" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["train", "evaluate"])
def test_shards_other_than_the_checkpoint_s(runs, recipe, shards, tmp_path, stage):
    pretend_checkpoint(runs.root, recipe, shards)
    other = tmp_path / "shards"
    shutil.copytree(shards, other)
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps({**manifest, "rejected": {"empty": 1}}))
    done = runs.adaponder(stage, recipe, "--set", f"data.shards={other}")
    assert done.returncode == 2, done.stderr
    assert "was trained on manifest" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_tokenizer_larger_than_the_vocabulary_of_a_published_backbone(runs, recipe, tmp_path):
    config = {"model_type": "gpt_neox", "vocab_size": 200, "hidden_size": 32, "num_attention_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = runs.adaponder("train", recipe, "--set", f"model.backbone={tmp_path}")
    assert done.returncode == 2, done.stderr
    assert "has 300 entries" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["release"], "release needs a recipe, or --verify FOLDER"),
        (["release", "quickstart", "--verify", "."], "--verify takes a release's folder and no recipe"),
        (["release", "--verify", "/no/such/folder"], "so it is no release"),
        (["generate", "nowhere", "--prompt", "x"], "nowhere: neither a checkpoint's folder"),
        (["compare", "nowhere", "nowhere"], "nowhere: neither a checkpoint's folder"),
    ],
)
def test_commands_on_what_stands(runs, arguments, told):
    command = [sys.executable, "-c", "from pipeline.cli import main; main()", *arguments]
    done = subprocess.run(command, env=runs.environment(), capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert told in done.stderr
