"""The order of the data with gaps, and a training that rolls back."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.checkpoint import complete_checkpoints
from pipeline.errors import WorldError
from pipeline.training.passed_over import FILE, PassedOver, read_passed_over

# How far each attempt got beyond the checkpoint that it began at, and how far beyond it the next checkpoint lies.
attempts = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=6)


@given(attempts)
@settings(deadline=None)
def test_no_row_of_a_rolled_back_stretch_is_seen_again_and_no_other_is_lost(walk):
    passed, kept, bad = PassedOver(), 0, set()
    for beyond, gained in walk:
        kept += gained
        taken = kept + beyond
        bad |= {passed.data_step(step) for step in range(kept, taken)}
        before = [passed.data_step(step) for step in range(kept)]
        passed = passed.rolled_back(kept, taken)
        # What the checkpoint has seen does not change.
        assert [passed.data_step(step) for step in range(kept)] == before
    seen = [passed.data_step(step) for step in range(kept + 50)]
    assert all(one < other for one, other in pairwise(seen))
    assert not bad & set(seen)
    assert bad | set(seen) == set(range(seen[-1] + 1)) | bad
    assert all(first < end for first, end in passed.data_steps)
    assert all(one[1] < other[0] for one, other in pairwise(passed.data_steps))
    assert len(passed.rolled_back_to) == len(walk)


def test_the_file_gives_back_what_was_written(tmp_path):
    assert read_passed_over(tmp_path) == PassedOver()
    passed = PassedOver().rolled_back(10, 14).rolled_back(10, 12).rolled_back(20, 21)
    assert passed.data_steps == ((10, 16), (26, 27))
    passed.write(tmp_path)
    assert read_passed_over(tmp_path) == passed
    (tmp_path / FILE).write_text('{"data_steps": [[1]]}')
    with pytest.raises(WorldError, match=FILE):
        read_passed_over(tmp_path)


@pytest.mark.slow
def test_a_training_rolls_back_and_ends_with_other_rows(runs, recipe):
    """The rate is so low that only the rows make the loss: a row that stands out is a spike, and is met by no attempt
    twice."""
    recipe["train"]["optimizer"]["peak_lr"] = 1e-9
    recipe["train"]["guards"] = {"loss_spike": "roll_back", "spike_score": 1.5, "spike_window_steps": 8}
    recipe["train"]["phases"] = [{"name": "only", "steps": 20, "halting": False}]
    done = runs.adaponder("train", recipe)
    folder = runs.root / recipe["name"]
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    backs = [event for event in events if event["kind"] == "rolled_back"]
    assert backs, done.stdout + done.stderr
    passed = read_passed_over(folder)
    assert passed.rolled_back_to == tuple(backs[-1]["rolled_back_to"])
    assert f"rolled back to step {passed.rolled_back_to[0]}, since loss of step " in done.stdout
    lines = runs.metrics(recipe["name"])
    steps = [line["step"] for line in lines]
    assert steps == list(range(1, len(steps) + 1))
    later = [line for line in lines if line["step"] > passed.rolled_back_to[0]]
    assert all(line["train/steps_passed_over"] > 0 for line in later)
    if done.returncode == 0:
        assert complete_checkpoints(folder / "checkpoints")[-1].step == steps[-1] == 20
    else:
        assert "times already" in done.stderr
