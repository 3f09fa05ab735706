"""Do the ranks reach each other the way that collectives do? Joins them to the group that later checks compute in.

gloo takes the address that a host's own name stands for: where that is 127.0.0.1 it tells the others to connect to
themselves, and there the interface has to be named. NCCL connects at the first collective, which is the next check.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

from launch.node import address_towards
from launch.preflight.check import Check, Context, Finding, Told, first_of_nodes

_NAMING = {"gloo": "GLOO_SOCKET_IFNAME", "nccl": "NCCL_SOCKET_IFNAME"}


def look(context: Context) -> dict[str, Any]:
    """Joins the group, unless an address says beforehand that it would fail."""
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore

    meeting = context.meeting
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    seen: dict[str, Any] = {"backend": backend, "named": os.environ.get(_NAMING[backend], ""), **_own_addresses()}
    told = meeting.tell("network/addresses", seen)
    if meeting.store is None or _unreachable(told):
        return {**seen, "error": "", "seconds": 0.0}
    if backend == "nccl":
        torch.cuda.set_device(meeting.me.local_rank)
    began = time.monotonic()
    try:
        dist.init_process_group(
            backend,
            store=PrefixStore("group", meeting.store),
            rank=meeting.rank,
            world_size=len(meeting.places),
            timeout=timedelta(seconds=context.settings.timeout_seconds),
        )
    except (RuntimeError, ValueError) as error:
        return {**seen, "error": str(error).splitlines()[0][:300], "seconds": time.monotonic() - began}
    return {**seen, "error": "", "seconds": time.monotonic() - began}


def judge(context: Context, told: Sequence[Told]) -> list[Finding]:
    if findings := _unreachable(told):
        return findings
    findings = [
        Finding("failed", f"{each.place} cannot join the others over {each.seen['backend']}: {each.seen['error']}")
        for each in told
        if each.seen["error"]
    ]
    if findings:
        return findings
    seen = told[0].seen
    if context.meeting.nodes == 1:
        return [Finding("ok", f"{len(told)} ranks on one node, {seen['backend']}")]
    over = f"by {seen['named']}" if seen["named"] else f"by the address of each host's name ({seen['resolved']}, ...)"
    return [Finding("ok", f"{len(told)} ranks on {context.meeting.nodes} nodes joined over {seen['backend']}, {over}")]


def _unreachable(told: Sequence[Told]) -> list[Finding]:
    """Nodes that would give the others an address which leads back to these."""
    nodes = first_of_nodes(told)
    if len(nodes) < 2:
        return []
    found = []
    for node in nodes:
        seen = node.seen
        if seen["backend"] == "gloo" and not seen["named"] and seen["resolved"].startswith("127."):
            use = f"set cluster.network_interface to {seen['interface']}" if seen["interface"] else "name one"
            found.append(
                Finding(
                    "failed",
                    f"{node.place.host}'s own name stands for {seen['resolved']}, where no other node reaches it: "
                    f"{use} (interfaces: {', '.join(seen['interfaces'])})",
                )
            )
        elif seen["named"] and not any(name.startswith(seen["named"].lstrip("=^")) for name in seen["interfaces"]):
            found.append(
                Finding(
                    "failed",
                    f"{node.place.host} has no interface {seen['named']}, which cluster.network_interface names "
                    f"(interfaces: {', '.join(seen['interfaces'])})",
                )
            )
    return found


def _own_addresses() -> dict[str, Any]:
    """What this host's name stands for, its interfaces, and the one that the first node is reached by."""
    import psutil

    resolved = ""
    with suppress(OSError):
        resolved = socket.gethostbyname(socket.gethostname())
    interfaces: dict[str, list[str]] = {}
    for name, addresses in psutil.net_if_addrs().items():
        with_address = [each.address for each in addresses if each.family in (socket.AF_INET, socket.AF_INET6)]
        if with_address:
            interfaces[name] = with_address
    used = ""
    if "MASTER_ADDR" in os.environ:
        towards = address_towards(f"{os.environ['MASTER_ADDR']}:{os.environ.get('MASTER_PORT', '29500')}")
        with suppress(OSError):
            towards = socket.gethostbyname(towards)
        used = next((name for name, given in interfaces.items() if towards in given), "")
    return {
        "resolved": resolved,
        "interface": used if used != "lo" else next((name for name in interfaces if name != "lo"), ""),
        "interfaces": sorted(interfaces),
    }


CHECK = Check("network", look, judge)
