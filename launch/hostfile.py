"""DeepSpeed's hostfile, read here too: a mistake in it is told before anything starts, and the ranks are counted."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.errors import UserError

_LINE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s+slots=(\d+)(\s+#.*)?")
_FILTER = re.compile(r"([^:]+)(?::(\d+(?:,\d+)*))?")


def read_hostfile(path: Path) -> dict[str, int]:
    """Slots by host, in the order of the file; `UserError` naming the line that is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UserError(
            f"cluster.hosts.hostfile {path}: {reason}; it has a line `HOST slots=N` for each host"
        ) from error
    hosts: dict[str, int] = {}
    for number, line in enumerate((line.strip() for line in text.splitlines()), start=1):
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if not match or not int(match[2]):
            raise UserError(f"{path}, line {number}: {line!r} is not `HOST slots=N`")
        if match[1] in hosts:
            raise UserError(f"{path}, line {number}: {match[1]} stands twice")
        hosts[match[1]] = int(match[2])
    if not hosts:
        raise UserError(f"cluster.hosts.hostfile {path} names no host")
    return hosts


def chosen_slots(hosts: dict[str, int], include: str, exclude: str) -> dict[str, list[int]]:
    """The slots that are left of each host after DeepSpeed's filter, HOST[:SLOT,...][@...].

    `UserError` for hosts and slots that the hostfile does not name.
    """
    slots = {host: list(range(count)) for host, count in hosts.items()}
    name, given = ("include", include) if include else ("exclude", exclude)
    if not given:
        return slots
    named: dict[str, set[int]] = {}
    for item in given.split("@"):
        match = _FILTER.fullmatch(item)
        if not match:
            raise UserError(f"cluster.hosts.{name} {given}: {item!r} is not HOST or HOST:SLOT,SLOT")
        host = match[1]
        if host not in hosts:
            raise UserError(f"cluster.hosts.{name} {given}: {host} is not in the hostfile ({', '.join(hosts)})")
        wanted = {int(slot) for slot in match[2].split(",")} if match[2] else set(slots[host])
        if beyond := wanted - set(slots[host]):
            raise UserError(f"cluster.hosts.{name} {given}: {host} has slots 0 to {hosts[host] - 1}, not {min(beyond)}")
        named.setdefault(host, set()).update(wanted)
    keep = include != ""
    left = {host: [slot for slot in all_ if (slot in named.get(host, set())) == keep] for host, all_ in slots.items()}
    left = {host: slots for host, slots in left.items() if slots}
    if not left:
        raise UserError(f"cluster.hosts.{name} {given}: no slot is left")
    return left
