"""The training loop's benchmark runs at a tiny size: both sides train the same and send gradients once a step."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.table import README, table

pytestmark = pytest.mark.slow


def lines_of(output: Path, *arguments: str) -> list[dict[str, Any]]:
    sizes = ["--shape", "tiny", "--rounds", "5", "--tokens", "16"]
    subprocess.run(
        [sys.executable, "-m", "benchmarks.training_loop", *sizes, "--output", str(output), *arguments],
        check=True,
        timeout=240,
        cwd=README.parent,
        stdout=subprocess.DEVNULL,
    )
    return json.loads(output.read_text())


@pytest.mark.alone
def test_one_rank(tmp_path: Path) -> None:
    ours, plain = lines = lines_of(tmp_path / "loop.json", "--accumulation", "3")
    assert ours["item"] == "zero1, 1 rank, accumulation 3"
    assert plain["item"] == "plain loop, 1 rank, accumulation 3"
    assert ours["largest_loss_difference"] < 1e-4
    assert ours["data_wait_share"]["median"] < 0.01
    made = table([lines])
    assert "| zero1, 1 rank, accumulation 3 | time over a plain PyTorch loop | " in made
    assert "| share of the time that waits for data | 0.00" in made


def test_two_ranks_send_gradients_once_a_step(tmp_path: Path) -> None:
    lines = lines_of(tmp_path / "loop.json", "--ranks", "2", "--accumulation", "1", "3")
    handed = {line["item"]: line["handed_to_collectives_in_a_step"] for line in lines}
    for side in ("zero1", "DistributedDataParallel"):
        once, more = (handed[f"{side}, 2 ranks, accumulation {count}"] for count in (1, 3))
        assert once == more
        assert once["all_reduce"]["values"] > 6e6  # the network's parameters
    assert handed["zero1, 2 ranks, accumulation 1"]["all_gather"]["values"] > 3e6  # a half of the weights
    for ours in lines[::2]:
        assert ours["largest_loss_difference"] < 1e-4
    assert "| time over torch DistributedDataParallel | " in table([lines])
