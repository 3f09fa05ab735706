"""Connections by which ranks notice that a host is gone: one from each rank to rank 0, on which nothing is said.

Whether the other side is there the kernels ask each other (TCP keepalive), so a rank that is slow, stands in a debugger
or keeps Python's lock for minutes is no lost one; a process that ends closes its connection, and a host that is gone
answers no more. Rank 0 tells all others what it finds, so that every rank can name the host.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pipeline.training.lost_ranks import Peer, ended_line, interface_without_link, silent_line

_PROBES = 6
"""Within the time after which a host counts as gone."""
_HELLO_SECONDS = 5.0
_HELLO_BYTES = 4096
_STRANGERS = 16
"""That may stand in the queue before a rank, port scanners say."""
_LOOK_SECONDS = 1.0
_BYE = b"{}\n"


@dataclass(frozen=True)
class Loss:
    """That ranks are gone."""

    line: str
    ended: bool
    """Their processes ended; else their hosts do not answer."""


def listen(ranks: int) -> socket.socket:
    """Where rank 0 is reached by the others, on a port that is free and by every address of this host."""
    backlog = ranks + _STRANGERS
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=backlog)
    return socket.create_server(("", 0), backlog=backlog)


def accept_all(
    listener: socket.socket, token: str, ranks: int, within: float, seconds: float
) -> dict[socket.socket, Peer]:
    """The connections of `ranks` other ranks, or of as many as came `within` so many seconds.

    Whoever does not know the token is sent away. seconds: after which a host that does not answer counts as gone.
    """
    found: dict[socket.socket, Peer] = {}
    deadline = time.monotonic() + within
    while len(found) < ranks:
        listener.settimeout(max(0.01, deadline - time.monotonic()))
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            break
        try:
            connection.settimeout(_HELLO_SECONDS)
            hello = json.loads(_line(connection))
            if hello["token"] != token:
                raise ValueError
            _keep_asking(connection, seconds)
            found[connection] = Peer(int(hello["rank"]), str(hello["host"]))
        except (OSError, ValueError, KeyError, TypeError):
            connection.close()
    return found


def connect(address: str, port: int, token: str, rank: int, within: float, seconds: float) -> socket.socket:
    """A rank's connection to rank 0; OSError where there is no way."""
    connection = socket.create_connection((address, port), timeout=within)
    connection.sendall(json.dumps({"token": token, "rank": rank, "host": socket.gethostname()}).encode() + b"\n")
    _keep_asking(connection, seconds)
    return connection


def watch(peers: Mapping[socket.socket, Peer], seconds: float, on_loss: Callable[[Loss], None]) -> None:
    """Wait on connections until all have said good-bye, or until one is lost; then `on_loss`, once.

    On rank 0 those to all others, whom it tells; on another rank that to rank 0, which may tell of others.
    """
    loss = _wait(dict(peers), seconds)
    if loss is None:
        return
    told = json.dumps({"line": loss.line, "ended": loss.ended}).encode() + b"\n"
    for connection in peers:
        with contextlib.suppress(OSError):  # those that are gone
            connection.setblocking(False)
            connection.send(told)
    on_loss(loss)


def say_good_bye(peers: Mapping[socket.socket, Peer]) -> None:
    """This rank ends as it should. The connections stay open: a closed one would be taken for a lost rank."""
    for connection in peers:
        with contextlib.suppress(OSError):
            connection.send(_BYE)


def _wait(peers: dict[socket.socket, Peer], seconds: float) -> Loss | None:
    silent: list[Peer] = []
    decided_at = float("inf")
    own_address = ""
    with selectors.DefaultSelector() as selector:
        for connection in peers:
            selector.register(connection, selectors.EVENT_READ)
        while selector.get_map() and time.monotonic() < decided_at:
            for key, _ in selector.select(_LOOK_SECONDS):
                connection: socket.socket = key.fileobj  # pyright: ignore[reportAssignmentType]
                peer = peers[connection]
                selector.unregister(connection)
                try:
                    said = connection.recv(_HELLO_BYTES)
                except (ConnectionResetError, BrokenPipeError):
                    said = b""
                except OSError:  # no answer, or no way there any more
                    silent.append(peer)
                    own_address = connection.getsockname()[0].removeprefix("::ffff:").partition("%")[0]
                    # Probes to the ranks of a host do not end at the same time; all of them are told in one line.
                    decided_at = min(decided_at, time.monotonic() + seconds / _PROBES + _LOOK_SECONDS)
                    continue
                if said == _BYE:
                    continue
                if said:
                    return Loss(**json.loads(said.splitlines()[-1]))
                if not silent:
                    return Loss(ended_line(peer), ended=True)
    if not silent:
        return None
    here = socket.gethostname()
    return Loss(silent_line(silent, seconds, here, interface_without_link(own_address)), ended=False)


def _keep_asking(connection: socket.socket, seconds: float) -> None:
    """Have the kernel ask the other side's whether it is there, and give up after `seconds` without an answer."""
    connection.settimeout(None)
    between = max(1, round(seconds / _PROBES))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", between),
        ("TCP_KEEPINTVL", between),
        ("TCP_KEEPCNT", _PROBES - 1),
        ("TCP_USER_TIMEOUT", round(1000 * seconds)),
    ):
        if hasattr(socket, name):  # Linux has all of them
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _line(connection: socket.socket) -> bytes:
    read = b""
    while not read.endswith(b"\n") and len(read) < _HELLO_BYTES:
        more = connection.recv(_HELLO_BYTES)
        if not more:
            break
        read += more
    return read
