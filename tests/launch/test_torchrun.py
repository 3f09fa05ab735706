"""What torchrun's end tells: one line for the operator, and the exit code of the rank that failed first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = """
import os, signal, sys, time
from pathlib import Path
from launch.torchrun import LastWords

folder, what, rank = Path(sys.argv[1]), sys.argv[2], int(os.environ["RANK"])


if rank == 0:
    # It has lost the other one, and says so first.
    deadline = time.monotonic() + 60
    while not (folder / "told").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    LastWords("lost other ranks: Connection closed by peer", True, time.time() - 10, 1).leave(0)
    sys.exit(1)
if what == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if what == "silent":
    sys.exit(2)
code = {"failed": 1, "mistaken": 2, "slow": 1}[what]
LastWords("shards: no such folder", False, time.time(), code).leave(1)
(folder / "told").touch()
if what == "slow":  # still at it when torchrun sees the other's end
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(60)
sys.exit(code)
"""


def torchrun(module_folder: Path, *arguments: str) -> tuple[int, list[str]]:
    """Exit code of two ranks under it, and the lines that say something of a rank."""
    project = str(Path(__file__).parents[2])
    done = subprocess.run(
        [
            *(sys.executable, "-m", "launch.torchrun", "--standalone", "--local-addr", "127.0.0.1"),
            *("--nproc-per-node", "2", "--module", *arguments),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(module_folder), project]), "SLURMD_NODENAME": "n7"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Root Cause" not in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert "failed (exitcode" not in done.stderr, done.stderr
    return done.returncode, [line for line in done.stderr.splitlines() if line.startswith("rank ")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "code", "lines"),
    [
        ("failed", 1, ["rank 1 on n7: shards: no such folder"]),
        ("mistaken", 2, ["rank 1 on n7: shards: no such folder"]),
        ("slow", 1, ["rank 1 on n7: shards: no such folder"]),
        ("silent", 2, ["rank 1 on n7: ended with exit code 2 and no message"]),
        ("killed", 1, ["rank 1 on n7: ended by SIGKILL (killed from outside, or out of memory)"]),
    ],
)
def test_the_first_failure_is_one_line(tmp_path, what, code, lines):
    (tmp_path / "failing_worker.py").write_text(WORKER)
    assert torchrun(tmp_path, "failing_worker", str(tmp_path), what) == (code, lines)


@pytest.mark.slow
def test_a_rank_that_cannot_read_its_recipe(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("nam: run\n")
    code, (line,) = torchrun(tmp_path, "pipeline.training.worker", str(recipe), "--runs", str(tmp_path))
    assert code == 2
    assert line.startswith("rank ") and str(recipe) in line
    assert " on n7: " in line
