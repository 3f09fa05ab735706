"""Alarms about gates that no longer decide."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.recipe_train import Phase
from pipeline.training.gate_health import ALARMS, LOOKS, GateHealth
from tests.training.test_guards import Notes

HALTING = Phase(name="halting", steps=100, halting=True, ponder_fraction=0.1, ramp_steps=20)


def metrics(*active: float) -> dict[str, float]:
    return {f"depth/keep_ratio_pass_{number + 1}": share for number, share in enumerate(active)}


@given(st.lists(st.floats(0.02, 0.99), min_size=3, max_size=3))
def test_gates_that_decide_raise_no_alarm(kept):
    notes = Notes()
    health = GateHealth(4, notes)
    active = [1.0]
    for share in kept:
        active.append(active[-1] * share)
    for step in range(2 * LOOKS):
        assert health.look(step, HALTING, True, metrics(*active)) == {ALARMS: 0.0}
    assert not notes


@pytest.mark.parametrize(("kept", "words"), [(0.005, "0.50% of its tokens at step 9, under 1%"), (1.0, "over 99.9%")])
def test_an_alarm_comes_after_some_looks_once_and_goes(kept, words):
    notes = Notes()
    health = GateHealth(3, notes)
    bad, good = metrics(1.0, 0.5, 0.5 * kept), metrics(1.0, 0.5, 0.25)
    counts = [health.look(5 + number, HALTING, True, bad)[ALARMS] for number in range(2 * LOOKS)]
    assert counts == [0.0] * (LOOKS - 1) + [1.0] * (LOOKS + 1)
    assert notes.kinds == ["gate_alarm"]
    _, message, fields = notes[0]
    assert message.startswith("pass 2 keeps ") and words in message
    assert fields["gate_pass"] == 2 and fields["kept"] == kept
    counts = [health.look(50 + number, HALTING, True, good)[ALARMS] for number in range(LOOKS)]
    assert counts == [1.0] * (LOOKS - 1) + [0.0]
    assert notes.kinds == ["gate_alarm", "gate_recovered"]


def test_a_single_look_in_between_starts_the_count_anew():
    notes = Notes()
    health = GateHealth(2, notes)
    for step in range(10 * LOOKS):
        health.look(step, HALTING, True, metrics(1.0, 0.5 if step % LOOKS == 0 else 1.0))
    assert not notes


def test_nothing_is_looked_at_before_the_ramp_is_over_or_without_halting():
    notes = Notes()
    health = GateHealth(2, notes)
    open_gates = metrics(1.0, 1.0)
    for step in range(2 * LOOKS):
        assert health.look(step, HALTING, False, open_gates) == {}
        assert health.look(step, Phase(name="first", steps=9, halting=False), True, open_gates) == {}
        assert GateHealth(1, notes).look(step, HALTING, True, metrics(1.0)) == {}
    assert not notes


def test_a_pass_that_gets_no_tokens_is_not_the_one_to_blame():
    notes = Notes()
    health = GateHealth(4, notes)
    for step in range(LOOKS):
        health.look(step, HALTING, True, metrics(1.0, 0.0, 0.0, 0.0))
    assert [fields["gate_pass"] for _, _, fields in notes] == [1]
