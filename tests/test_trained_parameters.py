from __future__ import annotations

import pytest

from pipeline.errors import UserError
from pipeline.recipe_reader import read_recipe
from pipeline.trained_parameters import check_trained, is_trained
from pipeline.training.model_start import model_config


@pytest.mark.parametrize(
    ("trained", "name", "expected"),
    [
        ("all", "lm_head.weight", True),
        ("gates", "gates.0.logit.bias", True),
        ("gates", "lm_head.weight", False),
        ("gates.* gpt_neox.layers.5.*", "gates.0.logit.bias", True),
        ("gates.* gpt_neox.layers.5.*", "gpt_neox.layers.5.mlp.dense_h_to_4h.weight", True),
        ("gates.* gpt_neox.layers.5.*", "gpt_neox.layers.15.mlp.dense_h_to_4h.weight", False),
        ("gpt_neox.layers.[01].*", "gpt_neox.layers.1.attention.dense.bias", True),
        ("lm_head.weight", "lm_head.weight", True),
        ("lm_head", "lm_head.weight", False),
    ],
)
def test_a_parameter_is_in_a_set_by_its_whole_name(trained, name, expected):
    assert is_trained(trained, name) == expected


def check(patterns: list[str]) -> None:
    recipe = read_recipe("quickstart", [f"train.phases.1.train={patterns}"])
    check_trained(recipe.train.phases, model_config(recipe))


def test_patterns_that_fit_pass():
    check(["gpt_neox.layers.3.*", "gates.*", "*.bias", "gpt_neox.embed_in.weight"])


@pytest.mark.parametrize(
    ("pattern", "near"),
    [
        ("gpt_neox.layers.4.*", "gpt_neox.layers.3.*"),
        ("gpt_neox.embed_in.weights", "gpt_neox.embed_in.weight"),
        ("gate.*", "gates.*"),
        ("lm_head", "lm_head.weight"),
    ],
)
def test_a_pattern_that_fits_nothing_is_told_with_what_is_near(pattern, near):
    with pytest.raises(UserError) as raised:
        check(["lm_head.*", pattern])
    assert f"train.phases.1.train: no parameter fits '{pattern}'; near it: " in str(raised.value)
    assert near in str(raised.value)
