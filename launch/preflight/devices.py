"""Are the GPUs there, as many as asked for, alike, and idle?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from launch.preflight.check import Check, Context, Finding, Told, first_of_nodes

IDLE_BYTES = 2 << 30
"""Of a GPU's memory that may be taken: this process's own context, and what the driver and a display keep."""


def look(_: Context) -> list[dict[str, Any]]:
    """Every GPU that this process sees."""
    import torch

    if not torch.cuda.is_available():
        return []
    found = []
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        found.append({"name": properties.name, "free_bytes": free, "total_bytes": total})
    return found


def judge(context: Context, told: Sequence[Told]) -> list[Finding]:
    findings, nodes = [], first_of_nodes(told)
    ranks = {node.place.node: sum(each.place.node == node.place.node for each in told) for node in nodes}
    kinds: dict[str, list[str]] = {}
    for node in nodes:
        host, gpus, count = node.place.host, node.seen, ranks[node.place.node]
        wanted = context.gpus_per_node
        if wanted is None:
            wanted = "ranks" if gpus else 0
        if len(gpus) < (count if wanted == "ranks" else wanted):
            asked = f"its {count} ranks need one each" if wanted == "ranks" else f"{wanted} are asked for"
            findings.append(
                Finding(
                    "failed",
                    f"{host} has {_gpus(len(gpus))}, {asked}: take the node out, or look at its driver, "
                    "CUDA_VISIBLE_DEVICES and what the scheduler gave",
                )
            )
        for number, gpu in enumerate(gpus[: count if wanted == "ranks" else wanted]):
            kinds.setdefault(gpu["name"], []).append(host)
            taken = gpu["total_bytes"] - gpu["free_bytes"]
            if taken > IDLE_BYTES:
                findings.append(
                    Finding(
                        "failed",
                        f"GPU {number} of {host} is not idle: {taken / 2**30:.1f} of {gpu['total_bytes'] / 2**30:.0f} "
                        "GiB are taken (nvidia-smi tells by whom)",
                    )
                )
    if len(kinds) > 1:
        told_kinds = ", ".join(f"{name} on {', '.join(sorted(set(hosts))[:3])}" for name, hosts in kinds.items())
        findings.append(Finding("warning", f"the GPUs differ, the slowest sets the pace: {told_kinds}"))
    if findings:
        return findings
    if not kinds:
        return [Finding("ok", "no GPUs, and none are asked for")]
    name, hosts = next(iter(kinds.items()))
    return [Finding("ok", f"{len(hosts)} x {name} on {len(nodes)} nodes, idle")]


def _gpus(count: int) -> str:
    return "no GPU" if count == 0 else f"{count} GPU{'s' if count > 1 else ''}"


CHECK = Check("devices", look, judge)
