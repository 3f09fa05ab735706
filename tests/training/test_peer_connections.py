"""Connections between processes of this machine; a host whose cable is pulled is for tests/cluster."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from pipeline.training.lost_ranks import Peer
from pipeline.training.peer_connections import Loss, accept_all, listen, watch

SECONDS = 1.0
"""Without an answer."""
RANK = """
import sys, time
from pipeline.training.lost_ranks import Peer
from pipeline.training.peer_connections import connect, say_good_bye, watch
rank, port, how = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
peers = {connect("127.0.0.1", port, "token", rank, 10, 1.0): Peer(0, "first")}
if how == "ends":
    sys.stdin.readline()
elif how == "good-bye":
    sys.stdin.readline()
    say_good_bye(peers)
else:
    watch(peers, 1.0, lambda loss: print(loss.ended, loss.line, flush=True))
"""


class Watched:
    """Rank 0 in this process, watching others."""

    def __init__(self, *how: str) -> None:
        self.losses: list[Loss] = []
        with listen(len(how)) as listener:
            port = listener.getsockname()[1]
            self.ranks = [
                subprocess.Popen(
                    [sys.executable, "-c", RANK, str(rank), str(port), one],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                for rank, one in enumerate(how, start=1)
            ]
            self.peers = accept_all(listener, "token", len(how), 30, SECONDS)
        self.thread = threading.Thread(target=watch, args=(self.peers, SECONDS, self.losses.append), daemon=True)
        self.thread.start()

    def end(self) -> None:
        for process in self.ranks:
            process.kill()
            process.communicate()
        self.thread.join(timeout=10)
        for connection in self.peers:
            connection.close()


@pytest.fixture
def watched() -> Iterator[type[Watched]]:
    made: list[Watched] = []

    class Kept(Watched):
        def __init__(self, *how: str) -> None:
            made.append(self)
            super().__init__(*how)

    yield Kept
    for one in made:
        one.end()


def test_a_rank_that_is_killed_is_named_by_all_others(watched):
    found = watched("ends", "watches")
    assert set(found.peers.values()) == {Peer(rank, socket.gethostname()) for rank in (1, 2)}
    found.ranks[0].kill()
    said = found.ranks[1].stdout.readline()
    assert said.startswith(f"True rank 1 on {socket.gethostname()} has ended in mid-training")
    found.thread.join(timeout=5)
    assert [(loss.ended, f"True {loss.line}\n") for loss in found.losses] == [(True, said)]


def test_a_rank_that_stands_still_is_not_lost(watched):
    found = watched("watches", "watches")
    found.ranks[0].send_signal(signal.SIGSTOP)
    found.thread.join(timeout=5 * SECONDS)
    assert found.thread.is_alive() and not found.losses
    found.ranks[0].send_signal(signal.SIGCONT)
    time.sleep(0.5)
    assert found.ranks[0].poll() is None and found.thread.is_alive()


def test_a_good_bye_is_no_loss(watched):
    found = watched("good-bye", "good-bye")
    for process in found.ranks:
        process.stdin.write("\n")
        process.stdin.flush()
        process.wait(timeout=10)
    found.thread.join(timeout=10)
    assert not found.thread.is_alive() and not found.losses


def test_strangers_are_sent_away_and_keep_nobody_out():
    with listen(1) as listener:
        port = listener.getsockname()[1]
        strangers = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
        strangers[0].sendall(b"GET / HTTP/1.1\n")
        strangers[1].sendall(json.dumps({"token": "guessed", "rank": 1, "host": "x"}).encode() + b"\n")
        strangers[2].close()
        rank = socket.create_connection(("127.0.0.1", port))
        rank.sendall(json.dumps({"token": "token", "rank": 1, "host": "second"}).encode() + b"\n")
        found = accept_all(listener, "token", 1, 10, SECONDS)
        assert list(found.values()) == [Peer(1, "second")]
        assert [stranger.recv(10) for stranger in strangers[:2]] == [b"", b""]
        assert accept_all(listener, "token", 1, 0.2, SECONDS) == {}, "nobody else came"
    for connection in (*strangers, rank, *found):
        connection.close()
