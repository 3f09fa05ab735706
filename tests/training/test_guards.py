"""Spikes, losses that are no numbers, and what is done about them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError, WorldError
from pipeline.recipe_guards import GuardsSection
from pipeline.recipe_reader import parse_recipe
from pipeline.training.checks import check_recipe
from pipeline.training.guards import Guards, RobustScore, RollBack
from tests.conftest import tiny_recipe

losses = st.floats(0.5, 12.0)


class Notes(list):
    def __call__(self, kind: str, message: str, **fields) -> None:
        self.append((kind, message, fields))

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _, _ in self]


def guards(**fields) -> tuple[Guards, Notes]:
    notes = Notes()
    return Guards(GuardsSection(**fields), notes), notes


def series(level: float, steps: int) -> list[float]:
    """Around `level`, with a noise of a hundredth of it that never repeats."""
    return [level * (1 + 0.01 * math.sin(12.9898 * step)) for step in range(steps)]


@given(st.lists(losses, min_size=8, max_size=60), st.floats(0.01, 100.0), losses)
@settings(deadline=None)
def test_the_score_does_not_depend_on_the_unit(values, unit, value):
    one, other = RobustScore(32), RobustScore(32)
    for known in values:
        one.add(known)
        other.add(known * unit)
    assert other.score(value * unit) == pytest.approx(one.score(value), rel=1e-6, abs=1e-6)


@given(st.lists(losses, min_size=8, max_size=60), losses, losses)
@settings(deadline=None)
def test_the_score_grows_with_the_value_and_is_zero_below_the_median(values, one, other):
    score = RobustScore(32)
    for known in values:
        score.add(known)
    low, high = sorted((one, other))
    assert 0.0 <= score.score(low) <= score.score(high)
    assert score.score(score.median()) == 0.0


@given(st.integers(0, 1000), st.floats(1.5, 1e6), st.integers(0, 12))
@settings(deadline=None, max_examples=50)
def test_outliers_in_the_window_do_not_hide_the_next_one(seed, factor, outliers):
    """Less than half of the window may be spikes themselves."""
    score = RobustScore(32)
    values = series(3.0, 32)
    for number in range(outliers):
        values[(seed + 7 * number) % 32] *= factor
    for value in values:
        score.add(value)
    assert score.score(3.0 * 1.5) > 10
    assert score.score(3.0) < 10


@given(st.floats(1.0, 12.0), st.floats(0.0, 0.01))
@settings(deadline=None, max_examples=50)
def test_a_falling_loss_is_no_spike(level, slope):
    watched, notes = guards()
    watched.phase("one")
    for step, loss in enumerate(series(level, 300)):
        watched.look(step, loss * math.exp(-slope * step), None)
    assert not notes


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_out_of_the_window(bad):
    score = RobustScore(8)
    score.add(bad)
    score.add(2.0)
    assert score.median() == 2.0


def test_a_spike_is_told_with_its_numbers_and_a_new_level_becomes_the_median():
    watched, notes = guards(spike_window_steps=32)
    watched.phase("one")
    for step, loss in enumerate(series(3.0, 40) + series(6.0, 40)):
        watched.look(step + 1, loss, loss / 10)
    told = {(kind, fields["step"]) for kind, _, fields in notes}
    assert ("loss_spike", 41) in told and ("grad_norm_spike", 41) in told
    assert not any(step > 41 + 20 for _, step in told)
    kind, message, fields = notes[0]
    assert kind == "loss_spike" and fields["action"] == "log"
    assert fields["median"] == pytest.approx(3.0, rel=0.02)
    assert fields["value"] == pytest.approx(6.0, rel=0.02)
    assert "loss of step 41 is" in message and "above the median 2.997" in message


def test_another_phase_is_not_compared():
    watched, notes = guards()
    watched.phase("one")
    for step, loss in enumerate(series(3.0, 200)):
        watched.look(step, loss, None)
    watched.phase("two")
    for step, loss in enumerate(series(9.0, 200)):
        watched.look(200 + step, loss, None)
    assert not notes


@pytest.mark.parametrize("quantity", ["loss", "grad_norm"])
def test_stop_raises(quantity):
    watched, _ = guards(**{f"{quantity}_spike": "stop"})
    watched.phase("one")
    for step, value in enumerate(series(3.0, 100)):
        watched.look(step, value, value)
    with pytest.raises(WorldError, match=rf"of step 100 is 30, .*train.guards.{quantity}_spike says stop"):
        watched.look(100, *((30.0, 3.0) if quantity == "loss" else (3.0, 30.0)))


@pytest.mark.parametrize("quantity", ["loss", "grad_norm", "nan"])
def test_roll_back_raises_for_the_loop(quantity):
    policies = {"non_finite_loss": "roll_back", "loss_spike": "roll_back", "grad_norm_spike": "roll_back"}
    watched, notes = guards(**policies)
    watched.remember("one", series(3.0, 100), series(3.0, 100))
    watched.phase("one")
    bad = {"loss": (30.0, 3.0), "grad_norm": (3.0, 30.0), "nan": (math.nan, None)}[quantity]
    with pytest.raises(RollBack, match="of step 100 is "):
        watched.look(100, *bad)
    assert len(notes) == 1


def test_skip_is_decided_before_the_step_and_counted():
    watched, notes = guards(loss_spike="skip", skips_in_a_row=3)
    assert watched.decides_before_the_step and not guards()[0].decides_before_the_step
    watched.phase("one")
    for step, loss in enumerate(series(3.0, 100)):
        assert not watched.skips(step, loss)
        watched.took(step, False, "")
        watched.look(step, loss, None)
    assert watched.skips(100, 30.0)
    assert not watched.skips(101, math.nan)  # DeepSpeed's own matter
    watched.look(100, 30.0, math.inf)
    assert notes.kinds == ["loss_spike"]
    for step in (100, 101):
        watched.took(step, True, "its loss is a spike")
    watched.took(102, False, "")
    for step in (103, 104):
        watched.took(step, True, "its loss is a spike")
    with pytest.raises(WorldError, match="the last 3 steps up to step 105 were skipped"):
        watched.took(105, True, "its loss is a spike")
    assert notes.kinds.count("step_skipped") == 5


def test_a_loss_that_is_not_finite():
    watched, notes = guards(non_finite_loss="skip")
    watched.look(4, math.nan, math.inf)
    assert notes.kinds == ["loss_not_finite"]
    json.dumps(notes[0][2], allow_nan=False)
    with pytest.raises(WorldError, match="the loss of step 4 is inf: nothing after the last checkpoint is kept"):
        guards()[0].look(4, math.inf, None)


@pytest.mark.parametrize("field", ["non_finite_loss", "loss_spike"])
def test_what_deepspeed_cannot_do_without_zero_is_refused(field):
    content = tiny_recipe("guarded", Path("unused"))
    content["train"] |= {"strategy": "zero0", "guards": {field: "skip"}}
    with pytest.raises(UserError, match=rf"train.guards.{field} skip: train.strategy zero0 is without ZeRO"):
        check_recipe(parse_recipe(content, "test"), 2)
    content["train"]["strategy"] = "zero1"
    check_recipe(parse_recipe(content, "test"), 2)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["zero1", "zero3"])
def test_a_skipped_spike_leaves_weights_and_training_whole(runs, recipe, strategy):
    """Everything above the median is a spike here, so that about half of the steps are skipped."""
    recipe["train"] |= {
        "strategy": strategy,
        "guards": {"loss_spike": "skip", "spike_score": 1e-9, "spike_window_steps": 8, "skips_in_a_row": 50},
        "log_every_steps": 3,
        "cross_check_every_steps": 1,  # the ranks' weights stay the same
    }
    recipe["train"]["optimizer"]["peak_lr"] = 1e-9  # a loss that only wavers
    recipe["train"]["phases"] = [{"name": "only", "steps": 16, "halting": False}]
    lines = runs.train(recipe)
    events = [json.loads(line) for line in (runs.root / recipe["name"] / "events.jsonl").read_text().splitlines()]
    spikes = [event["step"] for event in events if event["kind"] == "loss_spike"]
    skipped = [event["step"] for event in events if event["kind"] == "step_skipped"]
    assert spikes == skipped and spikes
    assert all(event["reason"] == "its loss is a spike" for event in events if event["kind"] == "step_skipped")
    assert lines[-1]["step"] == 16
    assert lines[-1]["train/skipped_steps"] == len(skipped)
    assert all(math.isfinite(line["train/loss"]) for line in lines)
