"""Two nodes on this machine: two torchruns that meet, each with an environment, a mount or a rank of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

PROJECT = Path(__file__).parents[3]


@dataclass
class Node:
    """What is special about one."""

    environment: dict[str, str] = field(default_factory=dict)
    around: Sequence[str] = ()
    """Words before its command."""
    arguments: Sequence[str] = ()


@dataclass
class Ended:
    """How both ended."""

    codes: list[int]
    output: str
    seconds: float
    report: dict

    def verdict(self, check: str) -> str:
        return next(each["verdict"] for each in self.report["checks"] if each["name"] == check)

    def messages(self, check: str) -> str:
        found = next(each["findings"] for each in self.report["checks"] if each["name"] == check)
        return "; ".join(finding["message"] for finding in found)


def run_nodes(
    module: Sequence[str],
    nodes: Sequence[Node],
    report: Path,
    environment: dict[str, str],
    meanwhile: Callable[[list[psutil.Process], Path], None] = lambda started, said: None,
    timeout: float = 150,
) -> Ended:
    """Run `module` with its arguments as one rank on each node; `meanwhile` gets the nodes' processes and the
    file that both write to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    began = time.monotonic()
    said = Path(tempfile.mkstemp(prefix="nodes-")[1])
    with open(said, "a", encoding="utf-8") as output:
        started = [
            subprocess.Popen(
                [
                    *node.around,
                    *(sys.executable, "-m", "launch.node", "--nnodes", str(len(nodes)), "--nproc-per-node", "1"),
                    *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "test"),
                    # Ranks go by address, then by process number, which may start from the bottom again in between.
                    *("--local-addr", f"127.0.0.{number + 1}", "--rdzv-conf", f"is_host={int(number == 0)}"),
                    *("--module", *module, *node.arguments),
                ],
                # As in namespaces and containers that share a host name: the interface is named.
                env={**environment, "PYTHONPATH": str(PROJECT), "GLOO_SOCKET_IFNAME": "lo", **node.environment},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            for number, node in enumerate(nodes)
        ]
    try:
        meanwhile([psutil.Process(process.pid) for process in started], said)
        for process in started:
            process.wait(timeout=timeout)
    finally:
        for process in started:
            process.kill()
            process.wait()
    found = json.loads(report.read_text(encoding="utf-8")) if report.exists() else {"checks": []}
    text = said.read_text(encoding="utf-8")
    said.unlink()
    return Ended([process.returncode for process in started], text, time.monotonic() - began, found)


def other_version(folder: Path, package: str, version: str) -> str:
    """A PYTHONPATH on which `package` is installed in another version, as far as its metadata say."""
    information = folder / f"{package}-{version}.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    return os.pathsep.join([str(folder), str(PROJECT)])  # the first that is found counts
