"""The first host that fails ends the launch with one line, though pdsh would wait for the others; a program in pdsh's
place says what that would say. The real one is for tests/cluster."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import psutil
import pytest

from launch.launch_folder import write_launch
from launch.targets.hosts import files
from pipeline.training.stopping import Stopped
from tests.launch.targets.launched import bash, launch_of, programs

pytestmark = pytest.mark.slow

REFUSED = """
echo $$ >"$HOME/pids"
echo "n2: ssh: connect to host 10.0.0.2 port 22: Connection refused" >&2
echo "pdsh@here: n2: ssh exited with exit code 255" >&2
sleep 100 & echo $! >>"$HOME/pids"
wait
"""
FAILED = """
mkdir -p "$LOGS"
echo "$REPORT" >"$LOGS/attempt-001-rank-0001.error.json"
echo "n2: n2: HF_TOKEN did not arrive" >&2
echo "pdsh@here: n2: ssh exited with exit code 2" >&2
exit 2
"""
STOPPED = """
mkdir -p "$LOGS"
echo "$STOP" >"$LOGS/attempt-001-stopped.json"
echo "pdsh@here: n2: ssh exited with exit code 1" >&2
exit 1
"""


def launched(tmp_path: Path, pdsh: str, **variables: str):
    """A training on two hosts, and where its logs are."""
    launch = launch_of("hosts", tmp_path / "runs")
    write_launch(launch, files(launch, {"n1": [0], "n2": [0]}))
    environment = {
        **programs(tmp_path / "programs", pdsh=pdsh),
        "PYTHONPATH": ":".join(sys.path),
        "DS_ACCELERATOR": "cpu",
        "LOGS": str(launch.folder.logs),
        **variables,
    }
    return bash(launch.path / "train.sh", environment=environment, timeout=60), launch.folder.logs


def test_a_host_that_is_not_reached_ends_the_launch_and_what_it_has_started(tmp_path):
    began = time.monotonic()
    done, logs = launched(tmp_path, REFUSED)
    assert time.monotonic() - began < 60
    log = logs / "attempt-001-launcher.log"
    assert done.returncode == 1
    assert done.stderr == f"adaponder: n2: ssh: connect to host 10.0.0.2 port 22: Connection refused; see {log}\n"
    assert "ssh exited with exit code 255" in log.read_text()
    assert not any(psutil.pid_exists(int(number)) for number in (tmp_path / "programs" / "pids").read_text().split())


def test_what_a_host_said_before_a_rank_could_write_is_told(tmp_path):
    done, logs = launched(tmp_path, FAILED.replace("echo", "#", 1))
    assert done.returncode == 1
    assert done.stderr == f"adaponder: n2: n2: HF_TOKEN did not arrive; see {logs / 'attempt-001-launcher.log'}\n"


def test_a_rank_s_own_report_comes_first_with_its_exit_code(tmp_path):
    report = {"time": 1.0, "rank": 1, "host": "n2", "kind": "user", "message": "no such shards"}
    done, _ = launched(tmp_path, FAILED, REPORT=json.dumps(report))
    assert (done.returncode, done.stderr) == (2, "adaponder: no such shards\n")


def test_a_stop_that_was_asked_for_is_no_failure_whatever_pdsh_ends_with(tmp_path):
    stop = Stopped("stopped at step 7 because of SIGTERM", step=7, requeue=True)
    told = {"message": str(stop), "step": stop.step, "requeue": stop.requeue, "again": stop.again}
    done, _ = launched(tmp_path, STOPPED, STOP=json.dumps(told))
    assert (done.returncode, done.stderr) == (75, "")
    assert str(stop) in done.stdout
