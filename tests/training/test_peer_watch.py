"""Ranks that no launcher watches, as those of another host are: started one by one, each as if alone on its machine."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.training.test_stopping import long

pytestmark = pytest.mark.slow


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        return server.getsockname()[1]


def test_a_rank_that_is_killed_ends_the_others_which_name_it(runs, recipe):
    recipe = long(recipe)
    recipe["train"]["timeout_seconds"] = 600
    path, port = runs.write(recipe), free_port()
    folder: Path = runs.root / recipe["name"]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "pipeline.training.worker", str(path), "--runs", str(runs.root)],
            env={
                **runs.environment(),
                "RANK": str(rank),
                "LOCAL_RANK": "0",
                "WORLD_SIZE": "2",
                "LOCAL_WORLD_SIZE": "1",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
            },
            stdout=subprocess.DEVNULL,
        )
        for rank in range(2)
    ]
    try:
        metrics = folder / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not (metrics.is_file() and metrics.read_text().count("\n") >= 3):
            assert time.monotonic() < deadline and all(rank.poll() is None for rank in ranks)
            time.sleep(0.05)
        ranks[1].kill()
        assert ranks[0].wait(timeout=60) == 1
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    report = json.loads((folder / "logs" / "attempt-001-rank-0000.error.json").read_text())
    assert report["kind"] == "lost"
    told = f"rank 1 on {socket.gethostname()} has ended in mid-training"
    assert report["message"].startswith(told)
    assert told in (folder / "logs" / "attempt-001-rank-0000.log").read_text()
    failed = [event for event in runs.events(recipe["name"]) if event["kind"] == "training_failed"]
    assert [event["error"] for event in failed] == [report["message"]]
    assert '"status": "FAILED"' in (folder / "mlflow.json").read_text()
