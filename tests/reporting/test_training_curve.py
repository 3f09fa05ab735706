"""The training's own loss in a figure: thin, up to the last step asked for, the later of two that stand twice."""

import json

from pipeline.reporting.training_curve import MOST_POINTS, training_curve


def write(path, pairs):
    path.write_text(
        "".join(json.dumps({"step": step, "time": 0, "train/ce_loss": loss}) + "\n" for step, loss in pairs)
    )
    return path


def test_few_steps_stand_as_they_are(tmp_path):
    path = write(tmp_path / "metrics.jsonl", [(1, 5.0), (2, 4.0), (2, 3.0), (3, 2.0), (4, 1.0)])
    assert training_curve(path, 3) == [(1, 5.0), (2, 3.0), (3, 2.0)]


def test_many_steps_are_means_of_stretches(tmp_path):
    path = write(tmp_path / "metrics.jsonl", [(step, float(step)) for step in range(10_000)])
    points = training_curve(path, 9_999)
    assert MOST_POINTS / 2 < len(points) <= MOST_POINTS + 1
    assert points[0] == (33, sum(range(34)) / 34)
    assert points[-1][0] == 9_999


def test_a_run_without_metrics_has_no_curve(tmp_path):
    assert training_curve(tmp_path / "metrics.jsonl", 10) == []
