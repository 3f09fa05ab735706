"""What a rank says of others that are gone, in one line that names their hosts.

Light on purpose: the command that started the ranks tells such an end too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from pipeline.errors import WorldError

# What gloo and NCCL say when the other side of a connection has gone.
LOST_PEER = re.compile(r"[Cc]onnection (closed|reset|refused)|remote process exited|Timed out waiting|gloo|NCCL")
_NAMED = 4
"""Hosts named one by one, and ranks of each; of more, the first ones and how many."""
_CONTINUES = "the same command continues from the last checkpoint, with fewer hosts too"


class LostRanks(WorldError):
    """This rank cannot go on, since others are gone; why they are, they may have said themselves."""


@dataclass(frozen=True)
class Peer:
    """Another rank."""

    rank: int
    host: str


def silent_line(peers: Sequence[Peer], seconds: float, here: str, interface: str | None) -> str:
    """Of ranks whose hosts did not answer for `seconds`; at least one.

    here: the host that says so, which may be the one that is cut off. interface: of this host, where its own link is
    down.
    """
    by_host: dict[str, list[int]] = {}
    for peer in sorted(peers, key=lambda peer: peer.rank):
        by_host.setdefault(peer.host, []).append(peer.rank)
    hosts = [f"{host} ({_ranks(ranks)})" for host, ranks in by_host.items()]
    named = ", ".join(hosts[:_NAMED]) + (f" and {len(hosts) - _NAMED} more" if len(hosts) > _NAMED else "")
    if interface is not None:
        return f"{here} is cut off, its network interface {interface} has no link: no answer from {named} for " + (
            f"{seconds:.0f} s; {_CONTINUES}"
        )
    gone = "the host, or the network to it, is gone" if len(hosts) == 1 else "the hosts, or the network, are gone"
    return f"no answer from {named} for {seconds:.0f} s, asked from {here}: {gone}; {_CONTINUES}"


def ended_line(peer: Peer) -> str:
    """Of a rank whose process has ended, or was killed."""
    return (
        f"rank {peer.rank} on {peer.host} has ended in mid-training (its log says why, unless it was killed from "
        f"outside or out of memory); {_CONTINUES}"
    )


def interface_without_link(address: str) -> str | None:
    """The network interface of this host that has `address`, where its link is down; else None."""
    states = psutil.net_if_stats()
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address.partition("%")[0] == address for one in addresses):
            return name if name in states and not states[name].isup else None
    return None


def _ranks(ranks: Sequence[int]) -> str:
    named = ", ".join(str(rank) for rank in ranks[:_NAMED])
    more = f" and {len(ranks) - _NAMED} more" if len(ranks) > _NAMED else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {named}{more}"
