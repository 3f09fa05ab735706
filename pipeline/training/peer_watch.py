"""Ends this rank, with the name of the host, where another one is gone: nothing else would for minutes.

A collective waits for a lost rank until `train.timeout_seconds` are over, and then does not say for whom it waited.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType

import torch.distributed as dist

from pipeline.errors import WorldError
from pipeline.training.agreement import from_rank_0, told_by_all
from pipeline.training.lost_ranks import LOST_PEER, LostRanks, Peer
from pipeline.training.peer_connections import Loss, accept_all, connect, listen, say_good_bye, watch
from pipeline.training.stopping import Stopped

_CONNECTING_SECONDS = 60.0
_ENDS_BY_ITSELF_SECONDS = 20.0
"""A rank that has lost another mostly fails of it, or was told to end, and has its own last words."""
_LAST_WORDS_SECONDS = 40.0
"""In which what this rank leaves behind is written: on a host that is cut off a network file system may never do it."""
_HEARD_SECONDS = 2.0
"""From the error in a collective to the end of the connection that explains it."""


class PeerWatch:
    """Watches all ranks of a training on more than one host, from a thread; used in a `with`.

    On one machine the launcher sees each rank's end, and nothing is watched.
    """

    def __init__(self, seconds: float, on_loss: Callable[[str], None]) -> None:
        """seconds: without an answer after which a host counts as gone; 0 watches nothing. on_loss: called once with
        the line that names the host, from the watch's thread, before the process is ended with exit code 1."""
        self._seconds = seconds
        self._on_loss = on_loss
        self._peers: Mapping[socket.socket, Peer] = {}
        self._loss: Loss | None = None
        self._heard = threading.Event()
        self._ending = False

    def __enter__(self) -> PeerWatch:
        """Collective. Raises `WorldError` on every rank where one cannot reach rank 0."""
        world_size = dist.get_world_size()
        if self._seconds and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) < world_size:
            self._peers = _meet(dist.get_rank(), world_size, self._seconds)
            threading.Thread(
                target=watch, args=(self._peers, self._seconds, self._lost), name="peer-watch", daemon=True
            ).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A rank that fails says nothing: the end of its process is to be noticed.
        if error is None or isinstance(error, Stopped):
            self._ending = True
            say_good_bye(self._peers)

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """An error inside that only says that a connection has gone becomes `LostRanks`, with the rank and its host."""
        try:
            yield
        except Exception as error:
            if self._peers and LOST_PEER.search(str(error)) and self._heard.wait(_HEARD_SECONDS) and self._loss:
                raise LostRanks(self._loss.line) from error
            raise

    def _lost(self, loss: Loss) -> None:
        if self._ending:
            return
        self._loss = loss
        self._heard.set()
        wait = _ENDS_BY_ITSELF_SECONDS if loss.ended else 0.0
        # Before anything is written: that may be to a network that is not there.
        end = threading.Timer(wait + _LAST_WORDS_SECONDS, os._exit, (1,))
        end.daemon = True
        end.start()
        try:
            print(loss.line, file=sys.stderr, flush=True)
            time.sleep(wait)
            self._on_loss(loss.line)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)


def _meet(rank: int, world_size: int, seconds: float) -> Mapping[socket.socket, Peer]:
    """Connections of rank 0 to all others, or of another rank to rank 0; collective."""
    address = os.environ["MASTER_ADDR"]
    listener = listen(world_size) if rank == 0 else None
    port, token, host = from_rank_0(
        (listener.getsockname()[1], secrets.token_hex(16), socket.gethostname()) if listener is not None else None
    )
    problem: str | None = None
    peers: Mapping[socket.socket, Peer] = {}
    if listener is not None:
        with listener:
            peers = accept_all(listener, token, world_size - 1, _CONNECTING_SECONDS, seconds)
        if missing := sorted(set(range(1, world_size)) - {peer.rank for peer in peers.values()}):
            problem = f"rank {', '.join(map(str, missing[:4]))} did not reach {host} at port {port}"
    else:
        try:
            peers = {connect(address, port, token, rank, _CONNECTING_SECONDS, seconds): Peer(0, host)}
        except OSError as error:
            problem = f"no way to {address} port {port}: {error.strerror or error}"
    if problems := told_by_all(problem):
        told, who = problems[-1]
        raise WorldError(
            f"{who}: {told}; ranks connect to a port of the first host that the system chooses, by which they notice "
            "that a host is gone (train.lost_host_seconds 0 does without)"
        )
    return peers
