"""What is refused before a rank starts. The command line's part in it is tests/test_cli_mistakes.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipeline.checkpoint import MARKER, STATE_FILE, TrainerState, find_checkpoint
from pipeline.data.manifest import manifest_hash, read_manifest
from pipeline.durable import write_json, write_text
from pipeline.errors import UserError, WorldError
from pipeline.recipe_reader import parse_recipe, read_recipe
from pipeline.run_folder import RunFolder
from pipeline.training.checks import check_training, choose_ranks


def check(runs, recipe: dict, tmp_path: Path, overrides=(), resume="auto", world_size=2):
    path = runs.write(recipe)
    read = read_recipe(str(path), overrides)
    return check_training(read, RunFolder(tmp_path, read), world_size, resume)


def pretend_checkpoint(folder: Path, recipe: dict, shards: Path, step: int = 20) -> Path:
    """A complete checkpoint as far as the checks look: state and marker."""
    resolved = parse_recipe(recipe, "test")
    path = folder / resolved.name / "checkpoints" / f"step-{step:08d}"
    state = TrainerState(
        step=step,
        save_id="0",
        rows=step * 8,
        tokens=step * 256,
        phase="halting",
        trained="all",
        seed=7,
        recipe=resolved.resolved(),
        recipe_hash=resolved.hash(),
        manifest_hash=manifest_hash(read_manifest(shards)),
        mlflow_run_id=None,
        world_size=2,
        zero_stage=1,
        precision="fp32",
        versions={},
    )
    write_text(path / STATE_FILE, state.model_dump_json())
    write_json(path / MARKER, {"files": {STATE_FILE: (path / STATE_FILE).stat().st_size}})
    return path


def test_a_sound_recipe_passes(runs, recipe, tmp_path):
    plan = check(runs, recipe, tmp_path)
    assert (plan.world_size, plan.zero_stage, plan.first_step, plan.resume_from) == (2, 1, 0, None)
    assert plan.config.max_passes == 3


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.micro_batch=8", "not divisible by 2 ranks x train.micro_batch 8"),
        ("tokenize.seq_len=16", "holds rows of 32 tokens, tokenize.seq_len says 16"),
        ("model.backbone=/no/such/folder", "no such checkpoint folder"),
        ("train.attention=flex_attention", "torch cannot train with it on a CPU"),
        ("train.strategy=zero9", r"none of the shipped strategies \(zero0, zero1, zero2, zero2-offload, zero3, "),
        ("data.shards=/no/such/shards", r"manifest.json is missing"),
    ],
)
def test_contradictions(runs, recipe, tmp_path, override, told):
    recipe["train"]["ranks"] = "auto"
    with pytest.raises(UserError, match=told) as raised:
        check(runs, recipe, tmp_path, [override])
    assert "\n" not in str(raised.value)


def test_shards_of_a_url_are_checked_like_a_folder_of_them(runs, recipe, shards, tmp_path):
    cache = f"data.cache={tmp_path / 'cache'}"
    plan = check(runs, recipe, tmp_path, [f"data.shards={shards.as_uri()}", cache])
    assert plan.manifest_hash == manifest_hash(read_manifest(shards))
    with pytest.raises(UserError, match=r"nowhere/manifest.json is missing: these shards are not finished, or the URL"):
        check(runs, recipe, tmp_path, ["data.shards=file:///nowhere", cache])
    with pytest.raises(UserError, match="holds rows of 32 tokens, tokenize.seq_len says 16"):
        check(runs, recipe, tmp_path, [f"data.shards={shards.as_uri()}", cache, "tokenize.seq_len=16"])


def test_bf16_without_zero_is_refused(runs, recipe, tmp_path):
    with pytest.raises(UserError, match="take zero1, or fp32"):
        check(runs, recipe, tmp_path, ["train.strategy=zero0", "train.precision=bf16"])


ONE_PASS, NOTHING_HALTS = "model.max_passes=1", "train.phases.1.halting=false"


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["model.feedback=hidden_state"], "model: feedback is hidden_state: it needs gating open"),
        (
            ["model.feedback=hidden_state", "model.gating=open", NOTHING_HALTS, "model.mixture_top_k=2"],
            "model: feedback is hidden_state: there is no mixture for mixture_top_k 2",
        ),
        (["model.pause_tokens=1"], "model: pause_tokens is 1: it needs max_passes 1, not 3"),
        (["model.shared_gate=true", ONE_PASS], "model: shared_gate is true: it needs gating learned and max_passes"),
        (["model.shared_gate=true", "model.gating=open", NOTHING_HALTS], "model: shared_gate is true: it needs"),
    ],
    ids=str,
)
def test_members_of_the_family_that_contradict_each_other(runs, recipe, tmp_path, overrides, told):
    with pytest.raises(UserError, match=told) as refused:
        check(runs, recipe, tmp_path, overrides)
    assert "\n" not in str(refused.value)


def test_a_published_backbone_limits_rows_and_vocabulary(runs, recipe, tmp_path):
    config = {
        "model_type": "gpt_neox",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    for name, numbers, told in (
        ("short", {"vocab_size": 304, "max_position_embeddings": 16}, "max_position_embeddings 16"),
        ("small", {"vocab_size": 200, "max_position_embeddings": 64}, "300 entries"),
        ("tiny", {"vocab_size": 3, "max_position_embeddings": 64}, "mixture_top_k is 4: the vocabulary has 3 entries"),
    ):
        write_json(tmp_path / name / "config.json", {**config, **numbers})
        with pytest.raises(UserError, match=told):
            check(runs, recipe, tmp_path, [f"model.backbone={tmp_path / name}", "model.mixture_top_k=4"])
    with pytest.raises(UserError, match=r"seq_len 32 x 4 positions a token \(model.pause_tokens 3\) is beyond .* 64"):
        check(runs, recipe, tmp_path, [f"model.backbone={tmp_path / 'small'}", "model.pause_tokens=3", ONE_PASS])
    write_json(tmp_path / "llama" / "config.json", {"model_type": "llama"})
    with pytest.raises(UserError, match="is a llama, not a GPT-NeoX"):
        check(runs, recipe, tmp_path, [f"model.backbone={tmp_path / 'llama'}"])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "is not JSON"),
        ("[]", "must say"),
        ('{"zero_optimisation": {"stage": 1}}', "must say"),
        ('{"zero_optimization": {"stage": "auto"}}', "must say"),
        ('{"zero_optimization": true}', "must say"),
        (
            '{"zero_optimization": {"stage": 1}, "train_batch_size": 4, "gradient_clipping": 1}',
            "train_batch_size, gradient_clipping, which the recipe",
        ),
    ],
)
def test_broken_strategies(runs, recipe, tmp_path, content, told):
    (tmp_path / "mine.json").write_text(content)
    with pytest.raises(UserError, match=told):
        check(runs, recipe, tmp_path, [f"train.strategy={tmp_path / 'mine.json'}"])


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("seed=8", "seed 7 -> 8"),
        ("data.shuffle=chunks", "data.shuffle 'rows' -> 'chunks'"),
        ("model.max_passes=2", "model.max_passes 3 -> 2"),
        ("train.phases.1.steps=5", "past the recipe's 15 steps"),
    ],
)
def test_a_run_is_not_continued_as_another(runs, recipe, shards, tmp_path, override, told):
    pretend_checkpoint(tmp_path, recipe, shards)
    with pytest.raises(UserError, match=told):
        check(runs, recipe, tmp_path, [override])


def test_what_may_change_in_mid_run(runs, recipe, shards, tmp_path):
    pretend_checkpoint(tmp_path, recipe, shards)
    changed = ["train.phases.1.steps=30", "train.checkpoint_every_steps=7"]
    changed += ["train.activation_checkpointing=pass", "train.vocabulary_chunk_tokens=0", "train.attention=eager"]
    plan = check(runs, recipe, tmp_path, [*changed, "train.skip_halted=true"])
    assert plan.first_step == 20


def test_a_run_goes_on_that_was_begun_before_a_field_was_there(runs, recipe, shards, tmp_path):
    state_file = pretend_checkpoint(tmp_path, recipe, shards) / STATE_FILE
    state = json.loads(state_file.read_text())
    del state["recipe"]["model"]["mixture_top_k"], state["recipe"]["data"]["shuffle"]
    write_json(state_file, state)
    write_json(state_file.parent / MARKER, {"files": {STATE_FILE: state_file.stat().st_size}})
    assert check(runs, recipe, tmp_path).first_step == 20
    with pytest.raises(UserError, match=r"data.shuffle 'rows' -> 'none'; model.mixture_top_k 0 -> 8"):
        check(runs, recipe, tmp_path, ["model.mixture_top_k=8", "data.shuffle=none"])


def test_other_shards_and_resume_never_are_refused(runs, recipe, shards, tmp_path):
    pretend_checkpoint(tmp_path, recipe, shards)
    with pytest.raises(UserError, match="already holds step-00000020"):
        check(runs, recipe, tmp_path, resume="never")
    other = tmp_path / "other"
    shutil.copytree(shards, other)
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps({**manifest, "rejected": {"empty": 1}}))
    with pytest.raises(UserError, match="was trained on manifest"):
        check(runs, recipe, tmp_path, [f"data.shards={other}"])


def test_a_damaged_older_checkpoint_stands_in_nobody_s_way(runs, recipe, shards, tmp_path):
    older = pretend_checkpoint(tmp_path, recipe, shards, step=10)
    newer = pretend_checkpoint(tmp_path, recipe, shards, step=20)
    (older / STATE_FILE).write_text("{}")
    assert find_checkpoint(newer.parent, newer.name).step == 20
    assert find_checkpoint(newer.parent).step == 20
    with pytest.raises(UserError, match="no complete checkpoint step-00000015: there are step-00000010, step-000"):
        find_checkpoint(newer.parent, "step-00000015")


def test_a_damaged_checkpoint_is_named(runs, recipe, shards, tmp_path):
    path = pretend_checkpoint(tmp_path, recipe, shards)
    (path / STATE_FILE).write_bytes((path / STATE_FILE).read_bytes() + b" ")
    with pytest.raises(WorldError, match=rf"{path / STATE_FILE} is damaged"):
        check(runs, recipe, tmp_path)


def test_ranks_are_chosen_with_a_reason(monkeypatch):
    import torch

    recipe = read_recipe("quickstart")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_ranks(recipe) == (2, "no GPU here, two on the CPU")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert choose_ranks(recipe)[0] == 8
    with pytest.raises(UserError, match="this machine has 8 GPUs"):
        choose_ranks(read_recipe("quickstart", ["train.ranks=16", "train.global_batch=64"]))
