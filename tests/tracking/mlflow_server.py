"""A real MLflow server on loopback: a sqlite store behind it, artifacts through its proxy."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def mlflow_server(port, store, artifacts):
    """A server that answers; gives its process, the leader of a group of its own."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    stored = ["--backend-store-uri", f"sqlite:///{store}", "--artifacts-destination", str(artifacts)]
    with open(store.with_suffix(".log"), "w") as log:
        process = subprocess.Popen([*command, *stored], stdout=log, stderr=log, start_new_session=True)
    try:
        until(lambda: answers(port), 60, "the MLflow server answers")
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(port) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def until(holds, seconds, what):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.1)
