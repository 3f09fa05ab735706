from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.recipe_reader import parse_recipe, read_recipe, shipped_recipes


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_shipped_recipes_are_valid(name):
    recipe = read_recipe(name)
    assert recipe.name == name
    assert parse_recipe(recipe.resolved(), "resolved") == recipe


def test_the_recipes_the_documentation_names_are_shipped():
    assert set(shipped_recipes()) == {
        "quickstart",
        "pythia-70m-scratch",
        "pythia-160m-scratch",
        "pythia-410m-scratch",
        "pythia-1.4b-continued",
        "pythia-2.8b-continued",
        "pythia-1.4b-from-stock",
    }


def test_all_problems_are_told_at_once_with_place_and_nearest_key():
    with pytest.raises(UserError) as raised:
        read_recipe(
            "quickstart",
            [
                "train.micro_bach=4",
                "model.backbone.hidden=3",
                "tokenize.sources.0.nme=x",
                "train.precision=fp16",
                "seed=many",
            ],
        )
    message = str(raised.value)
    for part in (
        "train.micro_bach: unknown key 'micro_bach'; did you mean 'micro_batch'?",
        "model.backbone.hidden: unknown key 'hidden'; did you mean 'hidden_size'?",
        "tokenize.sources.0.nme: unknown key 'nme'; did you mean 'name'?",
        "train.precision: input should be 'bf16' or 'fp32', not 'fp16'",
        "seed: input should be a valid integer",
    ):
        assert part in message
    assert "\n" not in message
    # A mapping was given for the backbone, so that it is no text is not the problem.
    assert "model.backbone: input should be a valid string" not in message


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("tokenize.seq_len=1024", "tokenize.seq_len 1024 is beyond the backbone's max_position_embeddings 512"),
        ("tokenize.tokenizer.train_vocab_size=5000", "is larger than model.backbone.vocab_size 4096"),
        ("train.global_batch=7", "not divisible by train.micro_batch"),
        ("train.ranks=3", "not divisible by train.ranks 3 x train.micro_batch"),
        ("train.phases.0.stps=1", "did you mean 'steps'?"),
        ("train.phases.7.steps=1", "list of 2"),
        ("tokenize.sources.0.kind=xml", "does not match any of the expected tags: 'jsonl', 'text'"),
        ("model.start=weights", "start: weights needs a backbone checkpoint"),
        ("name=../elsewhere", "name"),
        ("train", "write it as a.b=c"),
        ("train.seed={", "not YAML"),
        ("train.optimizer.peak_lr=-1", "greater than 0"),
        ("train.optimizer.peak_lr=.nan", "finite"),
        ("model.backbone.num_attention_heads=5", "not divisible by num_attention_heads 5"),
        ("model.mixture_top_k=5000", "model.mixture_top_k 5000 is larger than model.backbone.vocab_size 4096"),
        ("train.activation_checkpointing=block", "'none', 'activation', 'mlp', 'layer' or 'pass'"),
        ("train.attention=flash", "'sdpa', 'eager', 'flash_attention_2' or 'flex_attention'"),
        ("train.vocabulary_chunk_tokens=-1", "greater than or equal to 0"),
        ("model.feedback=state", "'mixture' or 'hidden_state'"),
        ("model.gating=open", "train.phases.1.halting: with model.gating open no token can halt: set it to false"),
        (
            "model.pause_tokens=4",
            "tokenize.seq_len 128 x 5 positions a token (model.pause_tokens 4) is beyond the backbone's "
            "max_position_embeddings 512: shorten the rows",
        ),
    ],
)
def test_contradictions_and_broken_overrides_are_refused(override, told):
    with pytest.raises(UserError, match="quickstart|--set") as raised:
        read_recipe("quickstart", [override])
    assert told in str(raised.value)


@pytest.mark.parametrize("field", ["kv_reuse", "freeze_halted"])
def test_skipping_in_training_needs_halted_tokens_left_as_they_are(field):
    with pytest.raises(UserError, match="train.skip_halted needs model.kv_reuse and model.freeze_halted"):
        read_recipe("quickstart", ["train.skip_halted=true", f"model.{field}=false"])
    assert read_recipe("quickstart", ["train.skip_halted=true"]).train.skip_halted


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["model.max_passes=1"], "with model.max_passes 1 there is no gate to train"),
        (["model.max_passes=1", "model.gate_on_last_pass=true"], "with model.max_passes 1 there is no gate to train"),
        (["model.gating=open", "train.phases.1.halting=false"], "with model.gating open there is no gate to train"),
    ],
)
def test_gates_that_are_not_there_cannot_be_trained(overrides, told):
    with pytest.raises(UserError, match=f"train.phases.0.train gates: {told}"):
        read_recipe("quickstart", ["train.phases.0.train=gates", *overrides])


def test_overrides_replace_scalars_lists_and_whole_sections():
    recipe = read_recipe(
        "quickstart",
        [
            "train.micro_batch=2",
            "train.optimizer.peak_lr=1e-4",
            "train.phases.1.steps=5",
            "tokenize.tokenizer=some/folder",
            'tokenize.sources=[{kind: jsonl, train: ["a/*.jsonl.zst"], validation: ["b.jsonl"]}]',
        ],
    )
    assert recipe.train.micro_batch == 2
    assert recipe.train.optimizer.peak_lr == 1e-4
    assert recipe.train.phases[1].steps == 5
    assert recipe.tokenize.tokenizer == "some/folder"
    assert [source.kind for source in recipe.tokenize.sources] == ["jsonl"]


def test_a_hub_id_gives_way_to_a_mapping():
    recipe = read_recipe("quickstart", ["tokenize.tokenizer=gpt2", "tokenize.tokenizer.train_vocab_size=300"])
    assert recipe.tokenize.tokenizer.train_vocab_size == 300  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("a: [", "is not YAML"),
        ("- 1", "not a mapping"),
        ("name: a\nname: b\n", "stands twice"),
        ("name: a", "is missing"),
    ],
)
def test_broken_files(tmp_path: Path, content, told):
    path = tmp_path / "r.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=told):
        read_recipe(str(path))


def test_a_missing_recipe_names_the_shipped_ones():
    with pytest.raises(UserError, match="no such file.*quickstart"):
        read_recipe("quickstrat")


def test_the_hash_follows_every_field_and_nothing_else():
    one, same, other = read_recipe("quickstart"), read_recipe("quickstart"), read_recipe("quickstart", ["seed=1"])
    assert one.hash() == same.hash() != other.hash()
    assert one.tokenize_hash() != other.tokenize_hash()
    longer = read_recipe("quickstart", ["train.phases.0.steps=7"])
    assert longer.hash() != one.hash()
    assert longer.tokenize_hash() == one.tokenize_hash()


def test_gate_bias_follows_the_start():
    assert read_recipe("quickstart").model.gate_bias == 3.0
    assert read_recipe("pythia-1.4b-continued").model.gate_bias == 4.0
    assert read_recipe("pythia-1.4b-from-stock").model.gate_bias == -4.0
    assert read_recipe("quickstart", ["model.gate_start=-1.5"]).model.gate_bias == -1.5
    with pytest.raises(UserError, match="model.gate_start"):
        read_recipe("quickstart", ["model.gate_start=ajar"])
