from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.node import address_towards

WORKER = """
import os, signal, sys, time
from pathlib import Path
from launch.local import die_with_parent
die_with_parent()
asked = []
signal.signal(signal.SIGUSR1, lambda *_: asked.append(1))
folder, rank = Path(sys.argv[1]), os.environ["RANK"]
(folder / f"rank-{rank}").write_text(" ".join(os.environ[n] for n in ("WORLD_SIZE", "MASTER_ADDR", "OMP_NUM_THREADS")))
deadline = time.monotonic() + 60
# As in a training: the rank that is asked tells the others, and all of them end together.
while sys.argv[2] == "75" and not (folder / "stop").exists() and time.monotonic() < deadline:
    if asked:
        (folder / "stop").touch()
    time.sleep(0.05)
# A rank that loses another one fails too.
sys.exit(int(sys.argv[2]) if rank == "1" or sys.argv[2] == "75" else int(sys.argv[2] != "0"))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("code", "end"), [(0, 0), (3, 1), (75, 75)])
def test_two_nodes_and_their_exit_codes(tmp_path, code, end):
    (tmp_path / "some_worker.py").write_text(WORKER)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])}
    environment.pop("OMP_NUM_THREADS", None)
    nodes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "launch.node", "--nnodes", "2", "--nproc-per-node", "1"),
                *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "test"),
                *("--rdzv-conf", f"is_host={int(number == 0)}", "--module", "some_worker", str(tmp_path), str(code)),
            ],
            env=environment,
        )
        for number in range(2)
    ]
    try:
        deadline = time.monotonic() + 60
        while not all((tmp_path / f"rank-{rank}").exists() for rank in range(2)):
            assert time.monotonic() < deadline, "the ranks did not start"
            time.sleep(0.1)
        if code == 75:
            nodes[0].send_signal(signal.SIGUSR1)  # to launch.node alone, not to torchrun and not to the rank
        assert [node.wait(timeout=60) for node in nodes] == [end, end]
    finally:
        for node in nodes:
            node.kill()
    for rank in range(2):
        threads = str(len(os.sched_getaffinity(0)))
        assert (tmp_path / f"rank-{rank}").read_text().split() == ["2", "127.0.0.1", threads]


def test_the_address_that_others_see():
    assert address_towards("127.0.0.1:29500") == "127.0.0.1"
    # The first node's own name, which may be a loopback address on itself: the others know it by that name.
    assert address_towards("localhost:29500") == "localhost"
    assert address_towards("no-such-host.invalid:29500") == socket.gethostname()
