"""A save beside the training: one at a time, told when it fails, finished or given up when the training fails."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from typing import Any

import pytest

from tests.training.saves_in_flight import STATES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(runs, tmp_path_factory) -> list[dict[str, Any]]:
    """What each rank found, all cases in one child process a rank: a hang becomes a failure."""
    folder = tmp_path_factory.mktemp("in-flight")
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("--module", "tests.training.saves_in_flight", str(folder / "found"), str(folder)),
    ]
    done = subprocess.run(command, env=runs.environment(), capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return [json.loads((folder / f"found-{rank}.json").read_text()) for rank in range(2)]


def test_the_next_save_waits_for_the_one_before_and_each_tells_what_it_cost(ranks):
    for rank in ranks:
        found = rank["in_order"]
        assert found["before"] == [True] and found["complete"]
    (first, first_lost), (second, second_lost) = ranks[0]["in_order"]["events"]
    assert 0.5 < first_lost <= first and 0 < second_lost <= second < first
    assert ranks[1]["in_order"]["events"] == []


def test_a_disk_that_refuses_on_one_rank_is_named_on_all(ranks):
    told = {rank["refused"][how] for rank in ranks for how in ("at_a_step", "waited")}
    (message,) = told
    assert f"step-00000002.partial/{STATES} cannot be written: No space left on device; " in message
    assert message.endswith(f" (rank 1 on {socket.gethostname()})") and message.count(STATES) == 1
    assert ranks[0]["refused"]["steps"] == ranks[1]["refused"]["steps"]
    assert not any(rank["refused"]["complete"] for rank in ranks)


def test_what_is_in_flight_when_the_training_fails_is_finished(ranks):
    for rank in ranks:
        found = rank["failed"]
        assert found["raised"] == "'a bug of the training'"
        assert found["complete"] and 0.5 < found["seconds"] < 10 and found["late"] is None


def test_a_rank_that_never_writes_is_not_waited_for_and_leaves_no_checkpoint(ranks):
    for rank in ranks:
        found = rank["abandoned"]
        assert found["raised"] == "'a bug of the training'" and 1 <= found["seconds"] < 5
        assert not found["complete"] and not found["complete_late"]
        assert "the training ended before its last checkpoint was complete" in found["late"]
