"""The loader's benchmark runs at a tiny size, and a set of many shards opens within its bounds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.loader_start import simulate_shards
from benchmarks.table import README


@pytest.mark.slow
def test_all_sides_are_measured(tmp_path: Path) -> None:
    output = tmp_path / "loader.json"
    sizes = ["--seq-len", "64", "--rows-per-chunk", "16", "--chunks", "12", "--shard-bytes", "8192", "--rows", "256"]
    command = [sys.executable, "-m", "benchmarks.loader", "--rounds", "5", "--many-shards", "20", *sizes]
    subprocess.run(
        [*command, "--output", str(output)], check=True, timeout=240, cwd=README.parent, stdout=subprocess.DEVNULL
    )
    lines = {line["item"]: line for line in json.loads(output.read_text())}
    assert len(lines) == 6
    assert all(line["rows_per_second"]["min"] > 0 for name, line in lines.items() if not name.startswith("start"))
    assert lines["loader, shuffle rows"]["time_over_loader_with_rows_shuffled"]["median"] == 1.0
    assert lines["start of many shards"]["start_seconds"]["runs"] == 5


@pytest.mark.slow
@pytest.mark.alone
def test_ten_thousand_shards_open_in_two_seconds_and_200_megabytes(tmp_path: Path) -> None:
    simulate_shards(tmp_path / "shards", 10_000, rows_per_chunk=256, seq_len=2048)
    command = [sys.executable, "-m", "benchmarks.loader_start", str(tmp_path / "shards")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=README.parent)
    told = json.loads(done.stdout)
    print(told)
    assert told["start_seconds"] < 2
    assert told["memory_bytes_at_start"] < told["memory_bytes_with_all_shards_used"] < 200e6
