"""Start the ranks of a stage on this machine with torchrun, and end them with their parent.

A killed parent must not leave ranks behind that go on writing into the run: on Linux each child asks the kernel to be
killed when its parent dies, torchrun by us and each rank by itself (`die_with_parent`).
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the thread that started it ends (Linux; elsewhere nothing)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def run_ranks(
    module: str, arguments: Sequence[str], *, ranks: int, launcher_log: Path, environment: Mapping[str, str]
) -> int:
    """Run `python -m module arguments` as `ranks` ranks and wait; returns torchrun's exit code.

    stdout is shared (rank 0's progress goes there); stderr, where torchrun and libraries talk, goes to `launcher_log`.
    """
    launcher_log.parent.mkdir(parents=True, exist_ok=True)
    # torchrun leaves a folder behind for logs that it then does not write; it gets one that is removed.
    with open(launcher_log, "ab") as log, tempfile.TemporaryDirectory(prefix="adaponder-torchrun-") as scratch:
        command = [
            *(sys.executable, "-m", "torch.distributed.run"),
            *("--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", str(ranks), "--log-dir", scratch),
            *("--module", module, *arguments),
        ]
        process = subprocess.Popen(
            command,
            stderr=log,
            env={**os.environ, **environment},
            preexec_fn=die_with_parent,
        )
        try:
            return process.wait()
        except BaseException:
            # Ctrl-C reaches torchrun too, which ends its ranks; give it the time, then make sure.
            process.terminate()
            try:
                process.wait(timeout=40)
            except subprocess.TimeoutExpired:
                process.kill()
            raise


def threads_per_rank(ranks: int) -> int:
    """CPU threads for each of `ranks` processes on this machine: an equal share of the cores."""
    return max(1, len(os.sched_getaffinity(0)) // ranks)
