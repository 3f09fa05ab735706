"""Reading metrics.jsonl while somebody else writes it."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import WorldError
from pipeline.tracking.metrics_lines import read_metrics

numbers = st.floats(allow_nan=False, width=32)
steps = st.lists(st.dictionaries(st.sampled_from(["train/loss", "depth/mean", "lr"]), numbers), max_size=8)


@given(steps=steps, cut=st.integers(min_value=0, max_value=2000))
@settings(max_examples=30, deadline=None)
def test_reading_in_two_goes_gives_every_line_once(tmp_path_factory, steps, cut):
    path = tmp_path_factory.mktemp("metrics") / "metrics.jsonl"
    lines = [json.dumps({"step": step, **metrics}) + "\n" for step, metrics in enumerate(steps, start=1)]
    whole = "".join(lines).encode()
    path.write_bytes(whole[:cut])  # the writer is in the middle of a line
    first = list(read_metrics(path))
    path.write_bytes(whole)
    second = list(read_metrics(path, first[-1].end if first else 0))
    assert [(line.step, line.metrics) for line in first + second] == list(enumerate(steps, start=1))


def test_the_time_of_a_line_is_not_a_metric(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 3, "time": 1700000000.25, "train/loss": 5.5}\n')
    (line,) = read_metrics(path)
    assert (line.time_ms, line.metrics) == (1700000000250, {"train/loss": 5.5})


def test_a_missing_file_is_a_run_without_steps(tmp_path):
    assert list(read_metrics(tmp_path / "metrics.jsonl")) == []


@pytest.mark.parametrize("bad", ["not json", '{"train/loss": 1.0}', '{"step": 1, "train/loss": "high"}', "[1]"])
def test_a_line_that_is_no_step_names_file_and_byte(tmp_path, bad):
    path = tmp_path / "metrics.jsonl"
    good = '{"step": 0, "train/loss": 1.0}\n'
    path.write_text(good + bad + "\n")
    with pytest.raises(WorldError, match=f"{path} holds no step's metrics at byte {len(good)}"):
        list(read_metrics(path))
