"""Lambda under a target depth: which way it goes, its bounds, and that a state is all that it goes on from."""

from __future__ import annotations

import math
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.recipe_train import Phase
from pipeline.training.depth_control import LEAST_WEIGHT, MOST_WEIGHT, DepthControl

HELD = Phase(name="halting", steps=100, halting=True, ponder_weight=0.1, target_depth=3.4, ramp_steps=20)
FIXED = Phase(name="halting", steps=100, halting=True, ponder_weight=0.1, ponder_fraction=0.3, ramp_steps=20)
DEPTHS = st.lists(st.floats(1.0, 4.0), min_size=1, max_size=60)


def test_without_a_target_the_phase_decides():
    control = DepthControl(4)
    control.took(FIXED, 0, 2.0)
    assert control.state is None
    assert control.ponder_weight(FIXED) == 0.1
    assert [control.ponder_fraction(FIXED, step) for step in (0, 10, 50)] == [0.0, 0.15, 0.3]


def test_the_share_that_is_pushed_down_is_the_one_that_has_to_halt():
    control = DepthControl(4)
    assert control.ponder_fraction(HELD, 0) == 0
    assert control.ponder_fraction(HELD, 10) == pytest.approx(0.1)
    assert control.ponder_fraction(HELD, 99) == pytest.approx(0.2)  # of three gated passes, 0.6 of a pass a token


@given(DEPTHS)
def test_too_deep_raises_it_too_shallow_lowers_it_within_bounds(depths):
    control, ema = DepthControl(4), None
    for depth in depths:
        before = control.ponder_weight(HELD)
        control.took(HELD, 50, depth)
        ema = depth if ema is None else 0.9 * ema + 0.1 * depth
        after = control.ponder_weight(HELD)
        assert LEAST_WEIGHT <= after <= MOST_WEIGHT
        expected = before * math.exp(HELD.depth_gain * (ema - 3.4) / 3)
        assert after == pytest.approx(min(max(expected, LEAST_WEIGHT), MOST_WEIGHT))


@given(DEPTHS, DEPTHS)
def test_a_state_is_all_that_it_goes_on_from(before, after):
    whole = DepthControl(4)
    for step, depth in enumerate(before):
        whole.took(HELD, step, depth)
    assert whole.state is not None
    resumed = DepthControl(4, type(whole.state).model_validate_json(whole.state.model_dump_json()))
    for step, depth in enumerate(after, len(before)):
        whole.took(HELD, step, depth)
        resumed.took(HELD, step, depth)
        assert resumed.state == whole.state
        assert resumed.ponder_weight(HELD) == whole.ponder_weight(HELD)


def test_another_phase_begins_anew():
    control = DepthControl(4)
    control.took(HELD, 50, 4.0)
    other = HELD.model_copy(update={"name": "later", "ponder_weight": 0.02})
    assert control.ponder_weight(HELD) > 0.1
    assert control.ponder_weight(other) == 0.02


def test_during_the_ramp_it_aims_between_all_passes_and_the_target():
    control = DepthControl(4)
    control.took(HELD, 10, 3.7)  # half of the ramp: 3.7 is what is aimed at
    assert control.ponder_weight(HELD) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"halting": False}, "target_depth needs halting: true"),
        ({"ponder_weight": 0.0}, "needs a ponder_weight above 0"),
        ({"ponder_fraction": 0.1}, "takes the place of ponder_fraction"),
    ],
)
def test_what_makes_no_sense_is_refused(changed, words):
    with pytest.raises(ValidationError, match=words):
        Phase.model_validate(HELD.model_dump() | changed)


@pytest.mark.slow
def test_a_resumed_training_holds_its_depth_by_the_same_weights(runs, recipe):
    recipe["train"] |= {"checkpoint_every_steps": 7, "log_every_steps": 2}
    phase = recipe["train"]["phases"][1]
    del phase["ponder_fraction"]
    phase |= {"target_depth": 2.2, "depth_gain": 1.0}
    lines = runs.train(recipe)
    weights = [line["train/ponder_weight"] for line in lines if line["step"] > 11]
    assert len(set(weights)) == len(weights)  # it is adjusted in every step, those that are not logged as well
    folder = runs.checkpoints(recipe["name"])
    shutil.rmtree(folder / "step-00000020")
    done = runs.adaponder("train", recipe)
    assert "continuing from step-00000014" in done.stdout, done.stdout + done.stderr
    again = {line["step"]: line for line in runs.metrics(recipe["name"])}
    for line in lines:
        for name in ("train/ponder_weight", "train/loss", "depth/mean"):
            assert again[line["step"]][name] == line[name], (line["step"], name)
