from __future__ import annotations

import json

from pipeline.training.metrics_file import MetricsFile


def test_a_resumed_file_drops_steps_beyond_the_checkpoint_and_half_lines(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    with MetricsFile(path, 0) as file:
        for step in range(1, 6):
            file.append(step, {"train/loss": float(step)})
    with open(path, "a") as broken:
        broken.write('{"step": 6, "train/lo')
    with MetricsFile(path, 3) as resumed:
        resumed.append(4, {"train/loss": 40.0})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["step"], line["train/loss"]) for line in lines] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]
