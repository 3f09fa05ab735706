"""All that a real training measures: one with a slow rank, its metrics.jsonl, its MLflow run, and docs/metrics.md."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from pipeline.training.rank_times import LOOKS
from tests.conftest import Runs, tiny_recipe
from tests.training.slow_worker import SLEEP_SECONDS

pytestmark = [pytest.mark.slow, pytest.mark.alone]
DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"
ELSEWHERE = {"train/steps_passed_over", "speed/mfu"}
"""Of a training that rolled back, and of one on a chip with a known peak."""
STEPS = LOOKS + 5


@dataclass
class Measured:
    folder: Path
    lines: list[dict]
    output: str

    def history(self, name: str) -> list[tuple[int, float]]:
        client = MlflowClient(f"sqlite:///{self.folder.parent / 'mlflow.db'}")
        run_id = json.loads((self.folder / "mlflow.json").read_text())["runs"][-1]["run_id"]
        return [(found.step, found.value) for found in client.get_metric_history(run_id, name)]


@pytest.fixture(scope="module")
def measured(runs: Runs, text_folder, shards) -> Measured:
    recipe = {**tiny_recipe("measured", text_folder), "data": {"shards": str(shards)}}
    recipe["train"] |= {"rank_times_every_steps": 1, "slow_rank_ratio": 1.5, "checkpoint_every_steps": 3}
    recipe["train"]["phases"] = [
        {"name": "pondering", "steps": 2, "halting": False},
        {"name": "halting", "steps": STEPS - 2, "halting": True, "ponder_weight": 0.1, "ponder_fraction": 0.3},
    ]
    recipe["track"] = {"system_metrics_every_seconds": 1}
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("--module", "tests.training.slow_worker", str(runs.write(recipe)), "--runs", str(runs.root)),
    ]
    done = subprocess.run(command, env=runs.environment(), capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return Measured(runs.root / "measured", runs.metrics("measured"), done.stdout)


def documented() -> set[str]:
    """The names in the first column of the document's tables."""
    rows = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])}


def as_documented(name: str) -> str:
    return re.sub(r"(?<=pass_|node_)\d+|(?<=gpu_)\d+", "N", name)


def test_the_document_names_what_is_written_and_nothing_else(measured):
    written = {as_documented(name) for line in measured.lines for name in line} - {"step", "time"}
    system = measured.folder / "logs" / "system-node-0000.jsonl"
    samples = [json.loads(line) for line in system.read_text().splitlines()]
    assert samples, "a training of some seconds has a sample"
    written |= {as_documented(f"system/node_0/{name}") for name in samples[0]} - {
        f"system/node_N/{name}" for name in ("step", "time", "host")
    }
    written.add("system/node_N/sample")
    gpus = {name for name in documented() if name.startswith("system/node_N/gpu_")}
    assert written | gpus == documented() - ELSEWHERE | (written & ELSEWHERE)


def test_mlflow_has_every_line_of_every_metric(measured):
    for name in ("time/forward_seconds", "ranks/slowest", "memory/peak_bytes", "gates/alarms"):
        assert measured.history(name) == [(line["step"], line[name]) for line in measured.lines if name in line]
    samples = (measured.folder / "logs" / "system-node-0000.jsonl").read_text().splitlines()
    sent = [step for step, _ in measured.history("system/node_0/sample")]
    assert sent == list(range(1, len(sent) + 1)) and 1 <= len(sent) <= len(samples)


def test_the_parts_of_a_step_are_less_than_the_step(measured):
    for line in measured.lines:
        parts = [line[f"time/{part}_seconds"] for part in ("data", "forward", "backward", "optimizer")]
        assert all(part > 0 for part in parts)
        assert sum(parts) < line["speed/step_seconds"] * 1.001
        # Two micro-batches a rank and step, of which rank 1 sleeps in each: the mean over both ranks.
        assert parts[1] > SLEEP_SECONDS
        assert line["time/data_seconds"] / line["speed/step_seconds"] <= line["speed/data_share"] < 1
        assert line["speed/tokens_per_second"] == pytest.approx(8 * 32 / line["speed/step_seconds"])
    # Rows are read while the step before is computed.
    assert all(line["speed/data_share"] < 0.01 for line in measured.lines[1:])
    # Saved at the phase's end, step 2, and at every third: told with the step after it.
    assert [line["step"] for line in measured.lines if line["time/save_seconds"] > 0] == [3, 4, 7, 10]


def test_arithmetic_and_memory_are_told_on_a_cpu_too(measured):
    rates = {line["speed/tflops_per_rank"] / line["speed/tokens_per_second"] for line in measured.lines}
    # Without train.skip_halted every token is computed in every pass, whatever halts.
    assert max(rates) == pytest.approx(min(rates))
    peaks = [line["memory/peak_bytes"] for line in measured.lines]
    assert peaks == sorted(peaks) and 100e6 < peaks[0] < 10e9


def test_the_slow_rank_is_named_on_the_console_and_in_the_events(measured):
    events = [json.loads(line) for line in (measured.folder / "events.jsonl").read_text().splitlines()]
    (slow,) = [event for event in events if event["kind"] == "slow_rank"]
    assert (slow["rank"], slow["rank_host"]) == (1, slow["host"])
    assert slow["message"] in measured.output.replace("\n", "")
    # The first step of each phase is a rank's first of its kind: what it loads then may take longer than the sleep.
    for line in measured.lines[3:]:
        assert line["ranks/slowest"] == 1
        assert line["ranks/step_seconds_max"] > 2 * SLEEP_SECONDS


def test_the_progress_line_shows_depth_speed_and_what_is_left(measured):
    shown = re.findall(
        rf"step (\d+)/{STEPS}  loss [\d.]+  ppl [\d.]+  depth [\d.]+/3  [\d,]+ tok/s  ETA \d+ s", measured.output
    )
    assert shown[0] == "1" and shown[-1] == str(STEPS)
