from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.plan.network import planned_config
from launch.plan.work import depth_histogram, run_work
from pipeline.model.flops import mean_keys, passes_factor, training_work
from pipeline.recipe_reader import read_recipe


@given(st.integers(1, 6), st.floats(0, 1))
def test_a_histogram_has_the_mean_it_is_made_for(passes, where):
    mean = 1 + where * (passes - 1)
    shares = depth_histogram(mean, passes)
    assert len(shares) == passes
    assert min(shares) >= 0
    assert sum(shares) == pytest.approx(1)
    assert passes_factor(shares) == pytest.approx(mean)


def test_a_run_is_its_phases():
    recipe = read_recipe("pythia-2.8b-continued")
    config, _ = planned_config(recipe)
    found = run_work(recipe, config, "layer", 4.0)
    keys = mean_keys(2048)
    gates = training_work(config, keys, frozen_backbone=True, chunked_mixture=True, checkpointing="layer")
    rest = training_work(config, keys, chunked_mixture=True, checkpointing="layer")
    steps = [phase.steps for phase in recipe.train.phases]
    assert found.steps == sum(steps)
    assert found.tokens == sum(steps) * 256 * 2048
    tokens = [count * 256 * 2048 for count in steps]
    assert found.model.total == pytest.approx(tokens[0] * gates.model.total + tokens[1] * rest.model.total)
    assert found.recomputed.total == pytest.approx(
        tokens[0] * gates.recomputed.total + tokens[1] * rest.recomputed.total
    )


def test_days_are_flops_over_what_the_gpus_reach():
    recipe = read_recipe("quickstart")
    work = run_work(recipe, planned_config(recipe)[0], "none", 4.0)
    assert work.days(1e12, 0.5, 4) == pytest.approx(2 * work.model.total / (1e12 * 0.5 * 4) / 86400)


def test_mean_depth_counts_only_where_halted_tokens_are_skipped():
    totals = {}
    for skips in ("false", "true"):
        recipe = read_recipe("quickstart", [f"train.skip_halted={skips}"])
        config, _ = planned_config(recipe)
        totals[skips] = [run_work(recipe, config, "none", depth).model.total for depth in (2.0, 4.0)]
    assert totals["false"][0] == totals["false"][1]
    assert totals["true"][0] < totals["true"][1]
