"""Do the ranks reach each other the way that collectives do? Joins them to the group that later checks compute in.

gloo takes the address that a host's own name stands for: where that is 127.0.0.1 it tells the others to connect to
themselves, and there the interface has to be named. So each node is asked at that address by the one before it. NCCL
connects at the first collective, which is the next check.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import psutil

from launch.node import address_towards
from launch.preflight.check import Check, Context, Finding, Told, first_of_nodes
from launch.preflight.meeting import Meeting

_ANSWER_SECONDS = 10.0
_NAMING = {"gloo": "GLOO_SOCKET_IFNAME", "nccl": "NCCL_SOCKET_IFNAME"}


def look(context: Context) -> dict[str, Any]:
    """Joins the group, unless a node cannot be reached at the address that it would give the others."""
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore

    meeting = context.meeting
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    seen: dict[str, Any] = {"backend": backend, **_own_addresses(os.environ.get(_NAMING[backend], ""))}
    if backend == "gloo" and meeting.nodes > 1:
        seen["reached"] = reach_next_node(meeting, seen["address"])
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


def reach_next_node(meeting: Meeting, address: str) -> bool | None:
    """Whether this node is answered by the next one at the address that that one gives the others; None for ranks that
    are not asked, those beside the first of a node."""
    is_first = meeting.me.local_rank == 0
    server, token = None, secrets.token_hex(16)
    if is_first:
        with suppress(OSError):
            server = socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
            threading.Thread(target=_answer, args=(server, token), daemon=True).start()
    port = server.getsockname()[1] if server else 0
    told = meeting.tell("network/listening", {"address": address, "port": port, "token": token})
    firsts = [each.place.rank for each in told if each.place.local_rank == 0]
    reached = None
    if is_first:
        other = told[firsts[(firsts.index(meeting.rank) + 1) % len(firsts)]].seen
        reached = _asked(other["address"], other["port"]) == other["token"]
    meeting.tell("network/asked", None)  # nobody stops listening before all have asked
    if server:
        server.close()
    return reached


def _answer(server: socket.socket, token: str) -> None:
    with suppress(OSError):
        while True:
            connection, _ = server.accept()
            with connection:
                connection.sendall(token.encode())


def _asked(address: str, port: int) -> str:
    """What listens there says; empty where nothing does."""
    try:
        with socket.create_connection((address, port), timeout=_ANSWER_SECONDS) as connection:
            connection.settimeout(_ANSWER_SECONDS)
            with connection.makefile("rb") as file:
                return file.read(64).decode(errors="replace")
    except OSError:
        return ""


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
    over = f"by {seen['named']}" if seen["named"] else f"by the address of each host's name ({seen['address']}, ...)"
    return [Finding("ok", f"{len(told)} ranks on {context.meeting.nodes} nodes joined over {seen['backend']}, {over}")]


def _unreachable(told: Sequence[Told]) -> list[Finding]:
    """Nodes whose address for collectives is of no use to the others."""
    nodes = first_of_nodes(told)
    if len(nodes) < 2:
        return []
    found = []
    for number, node in enumerate(nodes):
        seen, host, there = node.seen, node.place.host, ", ".join(node.seen["interfaces"])
        before = nodes[number - 1]
        if seen["named"] and not any(name.startswith(seen["named"].lstrip("=^")) for name in seen["interfaces"]):
            text = f"{host} has no interface {seen['named']}, which cluster.network_interface names (it has: {there})"
        elif before.seen.get("reached") is False:
            what = f"its interface {seen['named']}" if seen["named"] else "its own name"
            use = f"cluster.network_interface={seen['interface']}" if seen["interface"] else "cluster.network_interface"
            text = (
                f"{host} does not answer {before.place.host} at {seen['address'] or 'no address'}, which {what} stands "
                f"for and collectives would take: set {use} (it has: {there}), or look for a firewall"
            )
        else:
            continue
        found.append(Finding("failed", text))
    return found


def _own_addresses(named: str) -> dict[str, Any]:
    """The address that gloo would give the others, this host's interfaces, and the one towards the first node."""
    interfaces: dict[str, list[str]] = {}
    for name, addresses in psutil.net_if_addrs().items():
        given = [each.address for each in addresses if each.family in (socket.AF_INET, socket.AF_INET6)]
        if given:
            interfaces[name] = given
    address = ""
    with suppress(OSError):
        address = socket.gethostbyname(socket.gethostname())
    if named:
        address = next((given[0] for name, given in interfaces.items() if name.startswith(named)), "")
    used = ""
    if "MASTER_ADDR" in os.environ:
        towards = address_towards(f"{os.environ['MASTER_ADDR']}:{os.environ.get('MASTER_PORT', '29500')}")
        with suppress(OSError):
            towards = socket.gethostbyname(towards)
        used = next((name for name, given in interfaces.items() if towards in given), "")
    return {
        "named": named,
        "address": address,
        "interface": used if used != "lo" else next((name for name in interfaces if name != "lo"), ""),
        "interfaces": sorted(interfaces),
    }


CHECK = Check("network", look, judge)
