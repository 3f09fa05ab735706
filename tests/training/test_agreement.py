"""A rank that cannot read its rows stops all of them, with the reason in every rank's log."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pipeline.data.manifest import read_manifest
from pipeline.errors import WorldError
from pipeline.training.agreement import begin_together, read_together
from tests.conftest import Runs
from tests.training.test_training import wait_for

CPU = torch.device("cpu")


def test_a_process_alone_agrees_with_itself() -> None:
    assert read_together(lambda: 3, CPU) == 3
    start = begin_together(lambda: 3, CPU, True, torch.tensor([1.5, 2.0]))
    assert (start.found, start.stop_wanted, start.sums) == (3, True, [1.5, 2.0])

    def fails() -> int:
        raise OSError(5, "Input/output error", "train-000001.tar")

    with pytest.raises(WorldError, match=r"train-000001.tar: Input/output error"):
        read_together(fails, CPU)

    def is_a_bug() -> int:
        raise KeyError("train")

    with pytest.raises(KeyError):
        read_together(is_a_bug, CPU)


@pytest.mark.slow
def test_every_rank_raises_what_any_rank_met(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--module", "tests.training.reading_failures", str(tmp_path / "told")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = [json.loads((tmp_path / f"told-{rank}.json").read_text()) for rank in range(2)]
    host = socket.gethostname()
    assert [one[0] for one in told] == [one[4] for one in told] == ["rows of 0", "rows of 1"]
    assert (
        told[0][1:4]
        == told[1][1:4]
        == [
            f"train-000003.tar is damaged (read by rank 1 on {host})",
            f"train-000004.tar is damaged (read by rank 0 on {host}, rank 1 on {host})",
            f"train-000007.tar: No such file or directory (read by rank 0 on {host})",
        ]
    )
    assert [one[5] for one in told] == ["True", "True"]
    assert [one[7] for one in told] == ["True [3.0, nan]", "True [3.0, nan]"]
    assert [one[8] for one in told] == [f"SIGTERM of rank 1 on {host}"] * 2
    # The rank whose mistake it is raises its own, the others know of it.
    assert told[0][6] == f"WorldError: data.cache: /x knows no locks (read by rank 1 on {host})"
    assert told[1][6] == "UserError: data.cache: /x knows no locks"


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before the start", "in mid-run"])
def test_a_shard_that_is_cut_stops_all_ranks_and_stands_in_every_log(
    runs: Runs, recipe: dict, shards: Path, tmp_path: Path, when: str
) -> None:
    copied = tmp_path / "shards"
    shutil.copytree(shards, copied)
    path = copied / read_manifest(copied).train.shards[0].name
    recipe["data"]["shards"] = str(copied)
    recipe["train"]["phases"][0]["steps"] = 2000
    if when == "before the start":
        os.truncate(path, path.stat().st_size - 512)
    process = subprocess.Popen(
        runs.command("train", recipe),
        env=runs.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    folder = runs.root / recipe["name"]
    metrics = folder / "metrics.jsonl"
    try:
        if when == "in mid-run":
            wait_for(lambda: metrics.is_file() and '{"step": 3,' in metrics.read_text(), process)
            os.truncate(path, path.stat().st_size // 2)  # the ranks have it open
        cut = time.time()
        output, errors = process.communicate(timeout=100)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 1, output + errors
    assert f"{path} " in errors
    assert errors.count("\n") == 1
    for rank in range(2):
        log = folder / "logs" / f"attempt-001-rank-{rank:04d}.log"
        assert f"WorldError: {path} " in log.read_text()
        assert "(read by rank" in log.read_text()
        if when == "in mid-run":
            assert json.loads(log.with_suffix(".error.json").read_text())["time"] < cut + 10
