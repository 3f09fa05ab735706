"""The name of this machine, wherever one is told to the operator."""

from __future__ import annotations

import os
import socket


def host_name() -> str:
    """What the operator calls this machine: Slurm's name of the node where there is one, else the host's own."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()
