"""Lambda under a target depth: which way it goes, its bounds, and that a state is all that it goes on from."""

from __future__ import annotations

import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.recipe_train import Phase
from pipeline.training.depth_control import DepthControl

HELD = Phase(
    name="halting",
    steps=100,
    halting=True,
    ponder_weight=0.004,
    ponder_fraction=0.1,
    target_depth=3.4,
    target_width=0.3,
    ramp_steps=20,
)
FIXED = Phase(name="halting", steps=100, halting=True, ponder_weight=0.1, ponder_fraction=0.3, ramp_steps=20)
DEPTHS = st.lists(st.floats(1.0, 4.0), min_size=1, max_size=60)


def test_without_a_target_the_phase_decides():
    control = DepthControl(4)
    control.took(FIXED, 2.0)
    assert control.state is None
    assert control.ponder_weight(FIXED, 50) == 0.1
    assert [control.ponder_fraction(FIXED, step) for step in (0, 10, 50)] == [0.0, 0.15, 0.3]


@given(DEPTHS)
def test_too_deep_closes_too_shallow_opens_in_proportion_and_within_bounds(depths):
    control, mean = DepthControl(4), None
    for depth in depths:
        control.took(HELD, depth)
        mean = depth if mean is None else 0.8 * mean + 0.2 * depth
        expected = 0.004 * min(max((mean - 3.4) / 0.3, -1.0), 1.0)
        assert control.ponder_weight(HELD, 50) == pytest.approx(expected, abs=1e-12)
        assert control.ponder_fraction(HELD, 0) == 0.1


@given(DEPTHS, DEPTHS)
def test_a_state_is_all_that_it_goes_on_from(before, after):
    whole = DepthControl(4)
    for depth in before:
        whole.took(HELD, depth)
    assert whole.state is not None
    resumed = DepthControl(4, type(whole.state).model_validate_json(whole.state.model_dump_json()))
    for depth in after:
        whole.took(HELD, depth)
        resumed.took(HELD, depth)
        assert resumed.state == whole.state
        assert resumed.ponder_weight(HELD, 50) == whole.ponder_weight(HELD, 50)


def test_another_phase_begins_anew():
    control = DepthControl(4)
    control.took(HELD, 3.0)
    other = HELD.model_copy(update={"name": "later"})
    assert control.ponder_weight(HELD, 50) < 0
    assert control.ponder_weight(other, 50) == 0.004  # nothing has halted yet, as far as it knows


def test_during_the_ramp_it_aims_between_all_passes_and_the_target():
    control = DepthControl(4)
    control.took(HELD, 3.7)
    assert control.ponder_weight(HELD, 10) == pytest.approx(0.0)  # half of the ramp: 3.7 is what is aimed at


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"halting": False}, "target_depth needs halting: true"),
        ({"ponder_weight": 0.0}, "needs ponder_weight and ponder_fraction above 0"),
        ({"ponder_fraction": 0.0}, "needs ponder_weight and ponder_fraction above 0"),
    ],
)
def test_what_makes_no_sense_is_refused(changed, words):
    with pytest.raises(ValidationError, match=words):
        Phase.model_validate(HELD.model_dump() | changed)


@pytest.mark.slow
def test_a_resumed_training_holds_its_depth_by_the_same_weights(runs, recipe):
    recipe["train"] |= {"checkpoint_every_steps": 7, "log_every_steps": 2}
    phase = recipe["train"]["phases"][1]
    phase |= {"ponder_weight": 0.05, "target_depth": 2.5, "target_width": 1.0}
    lines = runs.train(recipe)
    weights = [line["train/ponder_weight"] for line in lines if line["step"] > 11]
    assert len(set(weights)) == len(weights)  # it follows every step, those that are not logged as well
    folder = runs.checkpoints(recipe["name"])
    shutil.rmtree(folder / "step-00000020")
    done = runs.adaponder("train", recipe)
    assert "continuing from step-00000014" in done.stdout, done.stdout + done.stderr
    again = {line["step"]: line for line in runs.metrics(recipe["name"])}
    for line in lines:
        for name in ("train/ponder_weight", "train/loss", "depth/mean"):
            assert again[line["step"]][name] == line[name], (line["step"], name)
