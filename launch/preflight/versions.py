"""Do all nodes run the same? Python, packages, and this project's own source.

Gradients of two versions are averaged without any error.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pipeline
from launch.preflight.check import Check, Context, Finding, Told, first_of_nodes
from pipeline.versions import installed_versions

_SOURCE = ("pipeline", "tokenization", "launch", "ds_configs")
_NAMED = 6
"""Packages that are told of those that differ."""


def look(_: Context) -> dict[str, Any]:
    others: dict[str, str] = {}
    for package in metadata.distributions():
        others.setdefault(
            package.metadata["Name"], package.version
        )  # the first on the path is the one that is imported
    return {
        "deciding": {**installed_versions(), "adaponder's source": source_hash()[:12]},
        "others": others,
        "system": f"{platform.system()} {platform.machine()}",
    }


def judge(_: Context, told: Sequence[Told]) -> list[Finding]:
    nodes = first_of_nodes(told)
    findings = [
        Finding("failed", f"{name}: {_differing(name, 'deciding', nodes)}: install the same on all nodes")
        for name in _differing_names("deciding", nodes)
    ]
    known = set(nodes[0].seen["deciding"])
    if others := [name for name in _differing_names("others", nodes) if name.lower() not in known]:
        more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        listed = "; ".join(f"{name}: {_differing(name, 'others', nodes)}" for name in others[:_NAMED])
        findings.append(Finding("warning", f"packages that differ: {listed}{more}"))
    if findings:
        return findings
    first = nodes[0].seen["deciding"]
    said = f"torch {first['torch']}, deepspeed {first['deepspeed']}, transformers {first['transformers']}"
    where = f"the same on {len(nodes)} nodes" if len(nodes) > 1 else "on this node"
    return [Finding("ok", f"{said}, {where}", {"versions": first})]


def source_hash() -> str:
    """SHA-256 over this project's own files, their names and contents."""
    root = Path(pipeline.__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(_files(root)):
        digest.update(f"{path.relative_to(root)}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _files(root: Path) -> Iterable[Path]:
    for folder in _SOURCE:
        for pattern in ("*.py", "*.json", "*.yaml"):
            yield from (root / folder).rglob(pattern)


def _differing_names(kind: str, nodes: Sequence[Told]) -> list[str]:
    names = dict.fromkeys(name for node in nodes for name in node.seen[kind])
    return [name for name in names if len({node.seen[kind].get(name) for node in nodes}) > 1]


def _differing(name: str, kind: str, nodes: Sequence[Told]) -> str:
    """Which nodes have what, the smaller groups first."""
    groups: dict[str | None, list[str]] = {}
    for node in nodes:
        groups.setdefault(node.seen[kind].get(name), []).append(node.place.host)
    parts = []
    for version, hosts in sorted(groups.items(), key=lambda group: len(group[1])):
        more = f" and {len(hosts) - 3} more" if len(hosts) > 3 else ""
        parts.append(f"{version or 'missing'} on {', '.join(hosts[:3])}{more}")
    return ", ".join(parts)


CHECK = Check("versions", look, judge)
