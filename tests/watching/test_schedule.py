"""Which suites a checkpoint is owed."""

from pathlib import Path

import pytest

from pipeline.kept_checkpoints import saves_at
from pipeline.recipe_reader import parse_recipe
from pipeline.watching.schedule import owed_suites, planned_saves
from tests.conftest import tiny_recipe


def recipe_with(train=None, **evaluation):
    content = tiny_recipe("tiny", Path("/text"))
    content["evaluate"] |= evaluation
    content["train"] |= train or {}
    return parse_recipe(content, "test")


def full_steps(recipe):
    return [step for step in range(recipe.train.steps + 1) if "depth" in owed_suites(recipe, step)]


def test_every_checkpoint_is_owed_the_cheap_suites_and_the_last_one_all():
    recipe = recipe_with(suites=["validation"], full_suites=["depth", "policies"])
    assert owed_suites(recipe, 0) == owed_suites(recipe, 5) == owed_suites(recipe, 7) == ["validation"]
    assert owed_suites(recipe, 20) == ["validation", "depth", "policies"]
    assert recipe.evaluate.all_suites == ["validation", "depth", "policies"]


def test_a_suite_named_twice_is_owed_once():
    recipe = recipe_with(suites=["validation", "depth"], full_suites=["depth", "policies"])
    assert owed_suites(recipe, 20) == ["validation", "depth", "policies"]


@pytest.mark.parametrize(("every", "expected"), [(0, [20]), (1, [5, 10, 15, 20]), (2, [10, 20]), (3, [15, 20])])
def test_full_suites_come_at_every_nth_planned_save(every, expected):
    """Saves of the tiny recipe: 5, 10 (the end of a phase too, counted once), 15, 20."""
    recipe = recipe_with(full_suites=["depth"], full_every=every)
    assert full_steps(recipe) == expected


def test_a_checkpoint_of_a_stop_changes_no_count():
    recipe = recipe_with(full_suites=["depth"], full_every=2)
    assert owed_suites(recipe, 6) == owed_suites(recipe, 4) == ["validation"]


def test_planned_saves_are_what_the_training_saves():
    train = {"checkpoint_every_steps": 7, "checkpoint_log_spaced": True}
    recipe = recipe_with(train)
    taken = {step for step in range(1, 21) if saves_at(recipe.train, step) or step in (10, 20)}
    assert planned_saves(recipe, 20) == taken == {1, 2, 4, 7, 8, 10, 14, 16, 20}
    assert planned_saves(recipe, 9) == {1, 2, 4, 7, 8}
