"""What a card claims of a network's origin."""

import pytest

from pipeline.recipe_reader import parse_recipe
from pipeline.release.model_card import base_model
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
