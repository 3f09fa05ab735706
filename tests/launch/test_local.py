from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.local import run_ranks, threads_per_rank

WORKER = """
import os, sys, time
from pathlib import Path
from launch.local import die_with_parent
die_with_parent()
folder = Path(sys.argv[1])
(folder / f"rank-{os.environ['RANK']}").write_text(f"{os.getpid()} {os.environ['WORLD_SIZE']} {os.environ['MARK']}")
time.sleep(float(sys.argv[2]))
sys.exit(int(sys.argv[3]) if os.environ["RANK"] == "1" else 0)
"""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch) -> Path:
    (tmp_path / "some_worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])]))
    return tmp_path


def test_threads_share_the_cores():
    cores = len(os.sched_getaffinity(0))
    assert threads_per_rank(1) == cores
    assert threads_per_rank(10 * cores) == 1


@pytest.mark.slow
@pytest.mark.parametrize("code", [0, 5])
def test_ranks_run_and_a_failed_one_shows(worker, code):
    log = worker / "logs" / "launcher.log"
    environment = {"MARK": "here"}
    exit_code = run_ranks(
        "some_worker", [str(worker), "0", str(code)], ranks=2, launcher_log=log, environment=environment
    )
    assert (exit_code != 0) == (code != 0)
    for rank in (0, 1):
        assert (worker / f"rank-{rank}").read_text().split()[1:] == ["2", "here"]


@pytest.mark.slow
def test_ranks_die_with_a_killed_parent(worker):
    script = (
        "import sys; from pathlib import Path; from launch.local import run_ranks\n"
        "run_ranks('some_worker', [sys.argv[1], '600', '0'], ranks=2,"
        " launcher_log=Path(sys.argv[1]) / 'log', environment={'MARK': 'x'})\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(worker)])
    files = [worker / "rank-0", worker / "rank-1"]
    deadline = time.monotonic() + 60
    while not all(file.is_file() and file.read_text() for file in files):
        assert time.monotonic() < deadline, "the ranks did not start"
        time.sleep(0.1)
    pids = [int(file.read_text().split()[0]) for file in files]
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    while any(_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "ranks outlived their parent"
        time.sleep(0.1)


def _alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
