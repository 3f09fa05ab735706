"""The ranks of one node under a scheduler: `python -m launch.node --nnodes 2 ... --module MODULE ...`.

It takes torchrun's arguments and adds what torchrun lacks. SIGTERM and SIGUSR1 to this process reach the ranks, also
those that are only just starting, and leave torchrun alone, which would die of one and kill the ranks 30 s after the
other. Exit code 75 of a rank is its own (`launch.torchrun`). Each node is known by the address it reaches the first
one by, since its host name may well stand for 127.0.0.1. Cores are shared among the ranks.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from launch.local import before_child, threads_per_rank, wait_for_ranks

_SAME_REQUEST_SECONDS = 5.0
"""Slurm signals this process, and once more through srun: all of it is one request."""


def main(arguments: Sequence[str]) -> int:
    """Run the ranks and wait; torchrun's exit code, 75 where the ranks were asked to stop and have saved."""
    endpoint = _value(arguments, "--rdzv-endpoint")
    ranks = _value(arguments, "--nproc-per-node") or os.environ.get("PET_NPROC_PER_NODE", "")
    environment = dict(os.environ)
    if ranks.isdecimal():
        environment.setdefault("OMP_NUM_THREADS", str(threads_per_rank(int(ranks))))
    with tempfile.TemporaryDirectory(prefix="adaponder-torchrun-") as scratch:
        command = [
            *(sys.executable, "-m", "launch.torchrun", "--log-dir", scratch),
            *("--signals-to-handle", "SIGINT,SIGHUP,SIGQUIT"),
            *(("--local-addr", address_towards(endpoint)) if endpoint else ()),
            *arguments,
        ]
        process = subprocess.Popen(command, env=environment, preexec_fn=before_child)
        code = wait_for_ranks(process, _SAME_REQUEST_SECONDS)
    return code if code >= 0 else 128 - code


def address_towards(endpoint: str) -> str:
    """The address of this machine that packets to `endpoint` (HOST:PORT) leave from, as other machines see it.

    On the very host of the endpoint that is the endpoint's own name: there the name may resolve to a loopback address,
    which is of no use to the others. A name that does not resolve (yet) gives this machine's host name.
    """
    host, _, port = endpoint.rpartition(":")
    host = host.strip("[]")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)  # sends nothing
            own = probe.getsockname()[0]
    except OSError:
        return socket.gethostname()
    return host if own == "::1" or own.startswith("127.") else own


def _value(arguments: Sequence[str], option: str) -> str:
    """What stands behind `option` among torchrun's own arguments."""
    own = arguments[: arguments.index("--module")] if "--module" in arguments else arguments
    return own[own.index(option) + 1] if option in own else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
