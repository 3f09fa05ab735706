"""A process ends with the session that started it, when asked to; sshd's part is played by a process that starts a
command in a session of its own, as sshd does. The real one is for tests/cluster."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil
import pytest

RANK = """
import time
from launch.ssh_session import SshSession
session = SshSession()
print("begun", flush=True)
time.sleep(60)
"""
COMMAND = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
DAEMON = (
    "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1], sys.argv[2]], start_new_session=True)"
)


@pytest.mark.parametrize(("asked", "ends"), [("1", True), ("", False)])
def test_a_rank_ends_with_its_session_only_where_it_is_asked_to(asked, ends):
    daemon = subprocess.Popen(
        [sys.executable, "-c", DAEMON, COMMAND, RANK],
        env={**os.environ, "ADAPONDER_ENDS_WITH_SSH_SESSION": asked},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert daemon.stdout is not None and daemon.stdout.readline() == "begun\n"
    command, rank = psutil.Process(daemon.pid).children(recursive=True)
    try:
        time.sleep(3)
        assert rank.is_running(), "as long as the session is there"
        daemon.kill()
        daemon.wait()
        gone, _ = psutil.wait_procs([rank], timeout=10 if ends else 5)
        assert bool(gone) == ends
    finally:
        for process in (command, rank):
            if process.is_running():
                process.kill()
