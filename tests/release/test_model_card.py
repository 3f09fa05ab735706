"""What a card and its provenance claim of a network's origin."""

from pathlib import Path

import pytest

from pipeline.model import AdaPonderConfig
from pipeline.recipe_reader import parse_recipe
from pipeline.release.export import model_files
from pipeline.release.member import method, summary
from pipeline.release.model_card import _decoding, base_model, hub_backbone
from pipeline.release.provenance import command_without_folders, without_folders
from tests.conftest import tiny_recipe


@pytest.mark.parametrize(
    ("start", "backbone", "expected"),
    [
        ("weights", "EleutherAI/pythia-1.4b", "EleutherAI/pythia-1.4b"),
        ("weights", "/models/pythia", None),
        ("weights", "./pythia", None),
        ("scratch", "EleutherAI/pythia-70m", None),
    ],
)
def test_a_base_model_is_named_when_its_weights_were_taken_from_the_hub(tmp_path, start, backbone, expected):
    content = tiny_recipe("carded", tmp_path)
    content["model"] |= {"start": start, "backbone": backbone}
    assert base_model(parse_recipe(content, "carded")) == expected


def test_a_folder_of_the_users_own_is_no_base_model_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    content = tiny_recipe("carded", tmp_path)
    content["model"] |= {"start": "weights", "backbone": "models/mine"}
    assert base_model(parse_recipe(content, "carded")) is None


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [("EleutherAI/pythia-70m", "EleutherAI/pythia-70m"), ("/home/ada/pythia", None), ("~/pythia", None)],
)
def test_an_architecture_is_named_when_the_hub_has_it(tmp_path, backbone, expected):
    content = tiny_recipe("carded", tmp_path)
    content["model"] |= {"start": "scratch", "backbone": backbone}
    assert hub_backbone(parse_recipe(content, "carded")) == expected


def test_a_published_recipe_names_no_folder_of_the_machine():
    recipe = {
        "tokenize": {
            "tokenizer": "/srv/tokenizers/neox",
            "sources": [{"train": ["/data/pile/*.jsonl.zst", "more/*.jsonl"], "path": "~/text/", "max_bytes": 5}],
        },
        "model": {"backbone": "EleutherAI/pythia-70m"},
        "data": {"shards": "https://ada:secret@host/a/pile/?sig=secret/x"},
    }
    assert without_folders(recipe) == {
        "tokenize": {
            "tokenizer": "neox",
            "sources": [{"train": ["*.jsonl.zst", "more/*.jsonl"], "path": "text", "max_bytes": 5}],
        },
        "model": {"backbone": "EleutherAI/pythia-70m"},
        "data": {"shards": "pile"},
    }


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("adaponder release quickstart --runs runs", "adaponder release quickstart --runs runs"),
        ("adaponder release /home/ada/x.yaml --runs ~/runs", "adaponder release x.yaml --runs runs"),
        ("adaponder run '/my runs/x.yaml' --runs=/data/runs/", "adaponder run x.yaml --runs=runs"),
        ("a --set data.shards=/data/shards", "a --set data.shards=shards"),
        ("a --set 'x=[/data/a, {path: /srv/b}]'", "a --set 'x=[a, {path: b}]'"),
        (
            "a --set model.backbone=EleutherAI/pythia-70m ./x ../y",
            "a --set model.backbone=EleutherAI/pythia-70m ./x ../y",
        ),
        ("a https://host/x", "a x"),
        ("a --set data.shards=s3://bucket/pile/ -- s3://bucket", "a --set data.shards=pile -- bucket"),
        ("a --x=https://ada:secret@host:80", "a --x=host:80"),
        ("a 'x=[https://ada:secret@host/p?sig=secret,secret&b=secret, /srv/b]'", "a 'x=[p b]'"),
    ],
)
def test_a_published_command_names_no_folder_of_the_machine(command, expected):
    assert command_without_folders(command) == expected


@pytest.mark.parametrize(("halting", "skipped"), [("skip", True), ("masked", False), ("none", False)])
def test_a_card_says_how_generation_works(halting, skipped):
    text = _decoding(AdaPonderConfig(halting=halting))
    assert "decodes with a cache" in text
    assert ("halted tokens are skipped" in text) == skipped
    assert ("every token pays for all passes" in text) != skipped


@pytest.mark.parametrize(
    ("fields", "opening", "told"),
    [
        ({}, "decides, token by token", "weighted by a learned gate"),
        ({"shared_gate": True}, "decides, token by token", "One gate serves all passes."),
        ({"max_passes": 1}, "a stock GPT-NeoX", "a single pass for every token"),
        ({"gating": "open"}, "takes 4 passes", "There are no gates, and no token halts."),
        ({"gating": "open", "feedback": "hidden_state"}, "Loop Transformer", "on its own output"),
        ({"max_passes": 1, "pause_tokens": 3}, "3 learned pause tokens after every token", "takes 4 n positions"),
    ],
)
def test_a_card_says_what_kind_of_network_it_is(fields, opening, told):
    config = AdaPonderConfig(**fields)
    assert opening in summary(config)
    assert told in method(config)


def test_the_code_of_a_release_is_what_loading_follows():
    files = model_files()
    names = {path.name for path in files}
    for path in files:
        for line in path.read_text().splitlines():
            if line.startswith("from ."):
                assert f"{line.split()[1][1:]}.py" in names, f"{path.name}: {line}"
    assert {"modeling_adaponder.py", "configuration_adaponder.py"} <= names
    assert len({path.parent for path in map(Path, files)}) == 1
